// The Python binding of the user stage: see limerank/kernels/personal.py for what the arrays are.
#include "personal.hpp"

#include <initializer_list>
#include <memory>

#include "python.hpp"

namespace limerank {

// In the order in which personal.inl takes it.
std::size_t personal_room(const Weights& w, std::int64_t events) {
    const auto d = static_cast<std::size_t>(w.width);
    const auto l = static_cast<std::size_t>((w.links + LANES - 1) / LANES * LANES);
    const auto tiles = static_cast<std::size_t>((events + EVENTS - 1) / EVENTS);
    const std::size_t of_links = 9 * d * l + 3 * l + 2 * d * LANES;
    const std::size_t of_events = (6 * d + 2 * l) * EVENTS;
    return of_links + of_events + (w.blocks.empty() ? 0 : tiles * EVENTS * d);
}

namespace {

// Memory of this thread, reused by the next request; aligned to a cache line.
float* room_of(std::size_t floats) {
    thread_local std::unique_ptr<float[]> held;
    thread_local std::size_t size = 0;
    if (size < floats + LANES) {
        held.reset();
        held.reset(new float[floats + LANES]);
        size = floats + LANES;
    }
    void* at = held.get();
    std::size_t bytes = size * sizeof(float);
    return static_cast<float*>(std::align(64, floats * sizeof(float), at, bytes));
}

using Array = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

// Weights of a model, read from its own memory: changes take effect at once.
class Personaliser {
  public:
    Personaliser(int heads, Array raw, std::vector<Array> arrays, const std::optional<std::string>& path)
        : raw_(raw), arrays_(std::move(arrays)), path_(&path_named(path)) {
        expect(raw_.ndim() == 2 && raw_.shape(0) >= 1 && raw_.shape(1) >= 1, "links are not [l, d]");
        w_.heads = heads;
        w_.links = static_cast<int>(raw_.shape(0));
        w_.width = static_cast<int>(raw_.shape(1));
        expect(heads >= 1 && w_.width % heads == 0, "heads do not divide the width");
        w_.raw = raw_.data();
        const std::size_t l = raw_.shape(0), d = raw_.shape(1), fixed = 21, each = 11;
        expect(arrays_.size() >= fixed && (arrays_.size() - fixed) % each == 0,
               "expected 21 arrays, and 11 for each block; got " + std::to_string(arrays_.size()));
        w_.context_in = linear(2 * d, 2 * d);
        w_.context_out = linear(d, 2 * d);
        w_.query = linear(d, d);
        w_.key_value = linear(2 * d, d);
        w_.out = linear(d, d);
        w_.log_floor = next({});
        w_.log_prior = next({l});
        w_.log_rate = next({static_cast<std::size_t>(heads), l});
        w_.feed_norm = norm(d);
        w_.up = linear(2 * d, d);
        w_.down = linear(d, 2 * d);
        w_.last = norm(d);
        while (at_ < arrays_.size()) {
            Block block;
            block.norm = norm(d);
            block.uq = linear(2 * d, d);
            block.kv = linear(2 * d, d);
            block.norm_read = norm(d);
            block.log_prior = next({l});
            block.out = linear(d, d);
            w_.blocks.push_back(block);
        }
    }

    Personaliser(const Personaliser&) = delete;
    Personaliser& operator=(const Personaliser&) = delete;

    // users [B, d], events [B, N, d], ages [B, N], of which the first lengths [B] are real
    // -> links [B, l, d].
    Out<float> personalise(In<float, 2> users, In<float, 3> events, In<float, 2> ages,
                           In<std::int64_t, 1> lengths, int threads) const {
        const std::size_t batch = users.shape(0), size = events.shape(1);
        const auto d = static_cast<std::size_t>(w_.width), l = static_cast<std::size_t>(w_.links);
        expect(users.shape(1) == d && events.shape(2) == d, "users and events are of another width");
        expect(events.shape(0) == batch && ages.shape(0) == batch && lengths.shape(0) == batch &&
                   ages.shape(1) == size,
               "users, events, ages and lengths do not fit together");
        expect(threads >= 1 && threads <= 1024, "expected 1 to 1024 threads");
        std::int64_t longest = 0;
        for (std::size_t b = 0; b < batch; b++) {
            const std::int64_t length = lengths.data()[b];
            expect(length >= 0 && length <= static_cast<std::int64_t>(size),
                   "a length is below 0 or above the number of positions");
            longest = std::max(longest, length);
        }
        std::vector<float> links(batch * l * d);
        {
            nb::gil_scoped_release free;
            in_threads(static_cast<std::int64_t>(batch), 1, 1, threads,
                       [&](int, std::int64_t low, std::int64_t high) {
                float* const room = room_of(personal_room(w_, longest));
                for (std::int64_t i = low; i < high; i++) {
                    const auto b = static_cast<std::size_t>(i);
                    const History history = {users.data() + b * d, events.data() + b * size * d,
                                             ages.data() + b * size, lengths.data()[b]};
                    path_->personalise(w_, history, room, links.data() + b * l * d);
                }
            });
        }
        return array(std::move(links), {batch, l, d});
    }

  private:
    const float* next(std::initializer_list<std::size_t> shape) {
        const Array& one = arrays_[at_];
        bool fits = one.ndim() == shape.size();
        for (std::size_t i = 0; fits && i < shape.size(); i++) fits = one.shape(i) == shape.begin()[i];
        expect(fits, "array " + std::to_string(at_) + " has a shape that is not of this model");
        at_++;
        return one.data();
    }
    Linear linear(std::size_t out, std::size_t in) {
        const float* weight = next({out, in});
        return {weight, next({out})};
    }
    Norm norm(std::size_t width) {
        const float* weight = next({width});
        return {weight, next({width})};
    }

    Array raw_;
    std::vector<Array> arrays_;  // stays alive: `w_` points into them
    std::size_t at_ = 0;
    const Path* path_;
    Weights w_;
};

}  // namespace

void add_personaliser(nb::module_& m) {
    nb::class_<Personaliser>(m, "Personaliser")
        .def(nb::init<int, Array, std::vector<Array>, const std::optional<std::string>&>(),
             nb::arg("heads"), nb::arg("links").noconvert(), nb::arg("weights"),
             nb::arg("path").none() = nb::none())
        .def("__call__", &Personaliser::personalise, nb::arg("users").noconvert(),
             nb::arg("events").noconvert(), nb::arg("ages").noconvert(),
             nb::arg("lengths").noconvert(), nb::arg("threads"));
}

}  // namespace limerank
