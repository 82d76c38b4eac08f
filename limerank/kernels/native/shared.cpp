// Logits of candidates that all requests of a batch share, and their gradients: what
// limerank/kernels/shared.py defines. BLOCK candidates of a request are computed at a time, in
// buffers that stay in the processor's cache; the backward pass computes their sums again. Threads
// share the candidates: each one computes its own for all requests.
#include <cstring>

#include "python.hpp"

namespace limerank {
namespace {

constexpr std::size_t BLOCK = 96, LANES = 16;

#define INLINE inline __attribute__((always_inline))

constexpr std::size_t padded(std::size_t count) { return (count + LANES - 1) / LANES * LANES; }

// Tiles of matrix products, in registers: ROWS rows of VECTORS vectors.
struct Wide {  // AVX-512: 32 registers of 16 numbers
    typedef float V __attribute__((vector_size(64)));
    static constexpr int ROWS = 6, VECTORS = 4;
};
struct Narrow {  // 16 registers of 8 numbers, or of 4
    typedef float V __attribute__((vector_size(32)));
    static constexpr int ROWS = 4, VECTORS = 2;
};

// c = a b, or c + a b, of one tile: a [rows, count] has steps between rows and columns, b and c lie
// row by row.
template <class T, int rows, int vectors>
INLINE void tile(const float* a, std::size_t row_step, std::size_t step, std::size_t count, const float* b,
                 std::size_t b_line, float* c, std::size_t c_line, bool add) {
    using V = typename T::V;
    constexpr std::size_t lanes = sizeof(V) / sizeof(float);
    V sums[rows][vectors];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) {
            if (add)
                std::memcpy(&sums[i][v], c + i * c_line + v * lanes, sizeof(V));
            else
                sums[i][v] = V{};
        }
    for (std::size_t k = 0; k < count; k++) {
        V right[vectors];
        for (int v = 0; v < vectors; v++) std::memcpy(&right[v], b + k * b_line + v * lanes, sizeof(V));
        for (int i = 0; i < rows; i++) {
            const float left = a[i * row_step + k * step];
            for (int v = 0; v < vectors; v++) sums[i][v] += left * right[v];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) std::memcpy(c + i * c_line + v * lanes, &sums[i][v], sizeof(V));
}

template <class T, int vectors>
INLINE void columns(std::size_t rows, const float* a, std::size_t row_step, std::size_t step,
                    std::size_t count, const float* b, std::size_t b_line, float* c, std::size_t c_line,
                    bool add) {
    std::size_t i = 0;
    for (; i + T::ROWS <= rows; i += T::ROWS)
        tile<T, T::ROWS, vectors>(a + i * row_step, row_step, step, count, b, b_line, c + i * c_line, c_line, add);
    for (; i < rows; i++)
        tile<T, 1, vectors>(a + i * row_step, row_step, step, count, b, b_line, c + i * c_line, c_line, add);
}

// The product of a [rows, count] and b [count, width]; the width is a multiple of LANES.
template <class T>
INLINE void multiply(std::size_t rows, std::size_t width, const float* a, std::size_t row_step,
                     std::size_t step, std::size_t count, const float* b, std::size_t b_line, float* c,
                     std::size_t c_line, bool add) {
    constexpr std::size_t lanes = sizeof(typename T::V) / sizeof(float), most = T::VECTORS * lanes;
    std::size_t at = 0;
    for (; at + most <= width; at += most)
        columns<T, T::VECTORS>(rows, a, row_step, step, count, b + at, b_line, c + at, c_line, add);
    for (; at < width; at += lanes)
        columns<T, 1>(rows, a, row_step, step, count, b + at, b_line, c + at, c_line, add);
}

// B requests, M candidates, j shares, g sums, h units, K logits, r numbers of an anchored link.
struct Given {
    std::size_t B, M, j, g, h, K, r;
    const float *weights, *folded, *head;   // [M, j], [B, j, g], [M, g]
    const std::int64_t *offsets, *low, *high;  // of the links: [B + 1], [V], [V]
    const std::int32_t* entries;               // candidate of each key; any other number: none
    const float *shares, *links, *layer, *out;  // of each key; [V, r], [g, r], [B, K, h]
    bool gated;
};

// What one thread computes of the gradients; those of its candidates' rows are its own.
struct Gradients {
    float *weights, *head;  // [M, j], [M, g], of all threads
    std::vector<float> folded, out, links, layer;
};

// Adds the links of a request to the candidates first .. first + count - 1: z [count, r].
INLINE void give(const Given& x, std::size_t request, std::size_t first, std::size_t count, float* z) {
    std::memset(z, 0, count * x.r * sizeof(float));
    for (std::int64_t v = x.offsets[request]; v < x.offsets[request + 1]; v++) {
        const float* __restrict link = x.links + static_cast<std::size_t>(v) * x.r;
        for (std::int64_t t = x.low[v]; t < x.high[v]; t++) {
            const std::size_t at = static_cast<std::size_t>(static_cast<std::uint32_t>(x.entries[t])) - first;
            if (at >= count) continue;
            float* __restrict sum = z + at * x.r;
            const float share = x.shares[t];
            for (std::size_t i = 0; i < x.r; i++) sum[i] += share * link[i];
        }
    }
}

// Adds to the gradients of the links those of these candidates' sums.
INLINE void take(const Given& x, std::size_t request, std::size_t first, std::size_t count, const float* of_z,
                 std::size_t line, float* of_links) {
    for (std::int64_t v = x.offsets[request]; v < x.offsets[request + 1]; v++) {
        float* __restrict link = of_links + static_cast<std::size_t>(v) * x.r;
        for (std::int64_t t = x.low[v]; t < x.high[v]; t++) {
            const std::size_t at = static_cast<std::size_t>(static_cast<std::uint32_t>(x.entries[t])) - first;
            if (at >= count) continue;
            const float* __restrict sum = of_z + at * line;
            const float share = x.shares[t];
            for (std::size_t i = 0; i < x.r; i++) link[i] += share * sum[i];
        }
    }
}

// Buffers of a thread, and what it needs of the present request, padded.
struct Work {
    std::size_t gp, jp, rp;
    std::vector<float> sums, z, folded, folded_t, layer_t, layer, of_folded, of_layer_t, of_z, rows, units;

    Work(const Given& x, std::size_t candidates, bool backward)
        : gp(padded(x.g)), jp(padded(x.j)), rp(padded(x.r)), sums(BLOCK * gp), z(candidates * x.r),
          folded(x.j * gp), layer_t(x.r * gp) {
        for (std::size_t i = 0; i < x.g; i++)
            for (std::size_t k = 0; k < x.r; k++) layer_t[k * gp + i] = x.layer[i * x.r + k];
        if (!backward) return;
        folded_t.resize(x.g * jp);
        layer.resize(x.g * rp);
        for (std::size_t i = 0; i < x.g; i++) std::memcpy(&layer[i * rp], x.layer + i * x.r, x.r * sizeof(float));
        of_folded.resize(x.j * gp);
        of_layer_t.resize(x.r * gp);
        of_z.resize(candidates * rp);
        rows.resize(BLOCK * jp);
        units.resize(x.h);
    }

    void take_request(const Given& x, std::size_t request) {
        const float* from = x.folded + request * x.j * x.g;
        for (std::size_t k = 0; k < x.j; k++) std::memcpy(&folded[k * gp], from + k * x.g, x.g * sizeof(float));
        if (folded_t.empty()) return;
        for (std::size_t k = 0; k < x.j; k++)
            for (std::size_t i = 0; i < x.g; i++) folded_t[i * jp + k] = from[k * x.g + i];
    }
};

// First-layer sums of the candidates first .. first + count - 1, whose links begin at z.
template <class T>
INLINE void first_layer(const Given& x, Work& w, std::size_t first, std::size_t count, const float* z) {
    for (std::size_t m = 0; m < count; m++)
        std::memcpy(&w.sums[m * w.gp], x.head + (first + m) * x.g, x.g * sizeof(float));
    multiply<T>(count, w.gp, x.weights + first * x.j, x.j, 1, x.j, w.folded.data(), w.gp, w.sums.data(), w.gp, true);
    if (z) multiply<T>(count, w.gp, z, x.r, 1, x.r, w.layer_t.data(), w.gp, w.sums.data(), w.gp, true);
}

template <class T>
INLINE void forward(const Given& x, std::size_t low, std::size_t high, float* logits) {
    Work w(x, high - low, false);
    for (std::size_t b = 0; b < x.B; b++) {
        w.take_request(x, b);
        const bool some = x.offsets[b] < x.offsets[b + 1];
        if (some) give(x, b, low, high - low, w.z.data());
        for (std::size_t first = low; first < high; first += BLOCK) {
            const std::size_t count = std::min(BLOCK, high - first);
            first_layer<T>(x, w, first, count, some ? &w.z[(first - low) * x.r] : nullptr);
            for (std::size_t m = 0; m < count; m++) {
                float* __restrict a = &w.sums[m * w.gp];
                for (std::size_t i = 0; i < x.h; i++) a[i] = a[i] < 0 ? 0 : a[i];  // NaN stays
                if (x.gated)
                    for (std::size_t i = 0; i < x.h; i++) a[i] *= a[x.h + i];
                for (std::size_t k = 0; k < x.K; k++) {
                    const float* __restrict out = x.out + (b * x.K + k) * x.h;
                    float sums[LANES] = {};
                    std::size_t i = 0;
                    for (; i + LANES <= x.h; i += LANES)
                        for (std::size_t l = 0; l < LANES; l++) sums[l] += a[i + l] * out[i + l];
                    float sum = 0;
                    for (; i < x.h; i++) sum += a[i] * out[i];
                    for (const float one : sums) sum += one;
                    logits[(b * x.M + first + m) * x.K + k] = sum;
                }
            }
        }
    }
}

// From the gradients of a candidate's logits those of its sums, in place of these, and of the last layer.
INLINE void last_layer(const Given& x, Work& w, const float* of_logits, const float* out, float* of_out, float* sums) {
    float* __restrict units = w.units.data();
    for (std::size_t i = 0; i < x.h; i++) units[i] = 0;
    float* __restrict a = sums;
    float* __restrict gate = sums + x.h;
    for (std::size_t k = 0; k < x.K; k++) {
        const float own = of_logits[k];
        const float* __restrict line = out + k * x.h;
        float* __restrict to = of_out + k * x.h;
        for (std::size_t i = 0; i < x.h; i++) units[i] += own * line[i];
        if (x.gated)
            for (std::size_t i = 0; i < x.h; i++) to[i] += own * ((a[i] > 0 ? a[i] : 0) * gate[i]);
        else
            for (std::size_t i = 0; i < x.h; i++) to[i] += own * (a[i] > 0 ? a[i] : 0);
    }
    if (x.gated) {
        for (std::size_t i = 0; i < x.h; i++) {
            const float value = a[i], opened = gate[i];
            a[i] = value > 0 ? units[i] * opened : 0;
            gate[i] = value > 0 ? units[i] * value : 0;
        }
    } else {
        for (std::size_t i = 0; i < x.h; i++) a[i] = a[i] > 0 ? units[i] : 0;
    }
}

template <class T>
INLINE void backward(const Given& x, std::size_t low, std::size_t high, const float* of_logits, Gradients& to) {
    Work w(x, high - low, true);
    for (std::size_t b = 0; b < x.B; b++) {
        w.take_request(x, b);
        const bool some = x.offsets[b] < x.offsets[b + 1];
        if (some) give(x, b, low, high - low, w.z.data());
        std::fill(w.of_folded.begin(), w.of_folded.end(), 0.0f);
        const float* out = x.out + b * x.K * x.h;
        for (std::size_t first = low; first < high; first += BLOCK) {
            const std::size_t count = std::min(BLOCK, high - first);
            const float* z = some ? &w.z[(first - low) * x.r] : nullptr;
            float* sums = w.sums.data();
            first_layer<T>(x, w, first, count, z);
            for (std::size_t m = 0; m < count; m++) {
                float* __restrict own = sums + m * w.gp;
                last_layer(x, w, of_logits + (b * x.M + first + m) * x.K, out, &to.out[b * x.K * x.h], own);
                float* __restrict head = to.head + (first + m) * x.g;
                for (std::size_t i = 0; i < x.g; i++) head[i] += own[i];
            }
            multiply<T>(count, w.jp, sums, w.gp, 1, x.g, w.folded_t.data(), w.jp, w.rows.data(), w.jp, false);
            for (std::size_t m = 0; m < count; m++) {
                float* __restrict own = to.weights + (first + m) * x.j;
                const float* __restrict row = &w.rows[m * w.jp];
                for (std::size_t i = 0; i < x.j; i++) own[i] += row[i];
            }
            multiply<T>(x.j, w.gp, x.weights + first * x.j, 1, x.j, count, sums, w.gp, w.of_folded.data(), w.gp, true);
            if (!some) continue;
            multiply<T>(x.r, w.gp, z, 1, x.r, count, sums, w.gp, w.of_layer_t.data(), w.gp, true);
            multiply<T>(count, w.rp, sums, w.gp, 1, x.g, w.layer.data(), w.rp, &w.of_z[(first - low) * w.rp], w.rp, false);
        }
        for (std::size_t k = 0; k < x.j; k++)
            std::memcpy(&to.folded[(b * x.j + k) * x.g], &w.of_folded[k * w.gp], x.g * sizeof(float));
        if (some) take(x, b, low, high - low, w.of_z.data(), w.rp, to.links.data());
    }
    for (std::size_t i = 0; i < x.g; i++)
        for (std::size_t k = 0; k < x.r; k++) to.layer[i * x.r + k] = w.of_layer_t[k * w.gp + i];
}

using Forward = void (*)(const Given&, std::size_t, std::size_t, float*);
using Backward = void (*)(const Given&, std::size_t, std::size_t, const float*, Gradients&);

#define PATH(name, how, T)                                                                                \
    how void forward_##name(const Given& x, std::size_t low, std::size_t high, float* logits) {           \
        forward<T>(x, low, high, logits);                                                                 \
    }                                                                                                     \
    how void backward_##name(const Given& x, std::size_t low, std::size_t high, const float* of_logits,   \
                             Gradients& to) {                                                             \
        backward<T>(x, low, high, of_logits, to);                                                         \
    }

PATH(portable, , Narrow)
#if defined(__x86_64__)
PATH(avx2, __attribute__((target("avx2,fma"))), Narrow)
PATH(avx512, __attribute__((target("avx512f,avx2,fma"))), Wide)
#endif

struct Compiled {
    std::string name;
    Forward forward;
    Backward backward;
};

// Of this machine, the fastest first.
std::vector<Compiled> compiled() {
    std::vector<Compiled> found;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f")) found.push_back({"avx512", forward_avx512, backward_avx512});
    if (avx2) found.push_back({"avx2", forward_avx2, backward_avx2});
#endif
    found.push_back({"portable", forward_portable, backward_portable});
    return found;
}

Compiled compiled_for(const std::optional<std::string>& name) {
    for (const Compiled& one : compiled())
        if (!name || *name == one.name) return one;
    throw std::invalid_argument("no path '" + *name + "' of shared logits on this machine");
}

Given checked(In<float, 2> weights, In<float, 3> folded, In<float, 2> head, In<std::int64_t, 1> offsets,
              In<std::int64_t, 1> low, In<std::int64_t, 1> high, In<std::int32_t, 1> entries, In<float, 1> shares,
              In<float, 2> links, In<float, 2> layer, In<float, 3> out) {
    Given x;
    x.B = folded.shape(0), x.M = weights.shape(0), x.j = weights.shape(1), x.g = folded.shape(2);
    x.K = out.shape(1), x.h = out.shape(2), x.r = links.shape(1);
    x.gated = x.g == 2 * x.h;
    expect(x.gated || x.g == x.h, "expected first-layer sums for one or two halves of the units");
    expect(folded.shape(1) == x.j, "expected what a request has for each share");
    expect(head.shape(0) == x.M && head.shape(1) == x.g, "expected first-layer sums for each candidate");
    expect(out.shape(0) == x.B, "expected a last layer for each request");
    expect(layer.shape(0) == x.g && layer.shape(1) == x.r, "expected a first layer for the links");
    expect(x.M < (std::size_t{1} << 31), "expected fewer candidates than 2^31");
    expect(entries.shape(0) == shares.shape(0), "expected a share for each key");
    expect(offsets.shape(0) == x.B + 1, "expected the offsets of each request's links");
    const auto count = static_cast<std::int64_t>(links.shape(0));
    expect(low.shape(0) == links.shape(0) && high.shape(0) == links.shape(0), "expected a range for each link");
    expect(offsets.data()[0] == 0 && offsets.data()[x.B] == count, "offsets are not those of the links");
    for (std::size_t b = 0; b < x.B; b++)
        expect(offsets.data()[b] <= offsets.data()[b + 1], "offsets do not ascend");
    const auto keys = static_cast<std::int64_t>(entries.shape(0));
    for (std::int64_t v = 0; v < count; v++)
        expect(low.data()[v] >= 0 && low.data()[v] <= high.data()[v] && high.data()[v] <= keys,
               "the range of a link is outside the keys");
    x.weights = weights.data(), x.folded = folded.data(), x.head = head.data();
    x.offsets = offsets.data(), x.low = low.data(), x.high = high.data(), x.entries = entries.data();
    x.shares = shares.data(), x.links = links.data(), x.layer = layer.data(), x.out = out.data();
    return x;
}

// Compute in threads: each one has a part of the candidates.
template <class Function>
void in_parts(const Given& x, int threads, Function function) {
    in_threads(static_cast<std::int64_t>(x.M), BLOCK, 2 * BLOCK, threads,
               [&](int thread, std::int64_t low, std::int64_t high) {
                   function(thread, static_cast<std::size_t>(low), static_cast<std::size_t>(high));
               });
}

void add_to(std::vector<float>& sums, const std::vector<float>& more) {
    for (std::size_t i = 0; i < sums.size(); i++) sums[i] += more[i];
}

}  // namespace

void add_shared_logits(nb::module_& m) {
    m.def("shared_paths", [] {
        std::vector<std::string> names;
        for (const Compiled& one : compiled()) names.push_back(one.name);
        return names;
    });
    m.def(
        "shared_logits",
        [](In<float, 2> weights, In<float, 3> folded, In<float, 2> head, In<std::int64_t, 1> offsets,
           In<std::int64_t, 1> low, In<std::int64_t, 1> high, In<std::int32_t, 1> entries, In<float, 1> shares,
           In<float, 2> links, In<float, 2> layer, In<float, 3> out, int threads, std::optional<std::string> path) {
            const Given x = checked(weights, folded, head, offsets, low, high, entries, shares, links, layer, out);
            const Compiled how = compiled_for(path);
            std::vector<float> logits(x.B * x.M * x.K);
            {
                nb::gil_scoped_release released;
                in_parts(x, threads, [&](int, std::size_t from, std::size_t to) { how.forward(x, from, to, logits.data()); });
            }
            return array(std::move(logits), {x.B, x.M, x.K});
        },
        nb::arg("weights").noconvert(), nb::arg("folded").noconvert(), nb::arg("head").noconvert(),
        nb::arg("offsets").noconvert(), nb::arg("low").noconvert(), nb::arg("high").noconvert(),
        nb::arg("entries").noconvert(), nb::arg("shares").noconvert(), nb::arg("links").noconvert(),
        nb::arg("layer").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"), nb::arg("path").none() = nb::none(),
        "Logits of M candidates of B requests, [B, M, K].");
    m.def(
        "shared_gradients",
        [](In<float, 3> of_logits, In<float, 2> weights, In<float, 3> folded, In<float, 2> head,
           In<std::int64_t, 1> offsets, In<std::int64_t, 1> low, In<std::int64_t, 1> high, In<std::int32_t, 1> entries,
           In<float, 1> shares, In<float, 2> links, In<float, 2> layer, In<float, 3> out, int threads,
           std::optional<std::string> path) {
            const Given x = checked(weights, folded, head, offsets, low, high, entries, shares, links, layer, out);
            expect(of_logits.shape(0) == x.B && of_logits.shape(1) == x.M && of_logits.shape(2) == x.K,
                   "expected a gradient of each logit");
            const Compiled how = compiled_for(path);
            const std::size_t count = links.shape(0);
            std::vector<float> of_weights(x.M * x.j), of_head(x.M * x.g);
            std::vector<Gradients> found(static_cast<std::size_t>(std::max(threads, 1)));
            {
                nb::gil_scoped_release released;
                in_parts(x, threads, [&](int thread, std::size_t from, std::size_t to) {
                    Gradients& own = found[static_cast<std::size_t>(thread)];
                    own = {of_weights.data(), of_head.data(), std::vector<float>(x.B * x.j * x.g),
                           std::vector<float>(x.B * x.K * x.h), std::vector<float>(count * x.r),
                           std::vector<float>(x.g * x.r)};
                    how.backward(x, from, to, of_logits.data(), own);
                });
                for (std::size_t t = 1; t < found.size() && !found[t].folded.empty(); t++) {
                    add_to(found[0].folded, found[t].folded);
                    add_to(found[0].out, found[t].out);
                    add_to(found[0].links, found[t].links);
                    add_to(found[0].layer, found[t].layer);
                }
            }
            Gradients& all = found[0];
            return nb::make_tuple(array(std::move(of_weights), {x.M, x.j}), array(std::move(all.folded), {x.B, x.j, x.g}),
                                  array(std::move(of_head), {x.M, x.g}), array(std::move(all.links), {count, x.r}),
                                  array(std::move(all.layer), {x.g, x.r}), array(std::move(all.out), {x.B, x.K, x.h}));
        },
        nb::arg("of_logits").noconvert(), nb::arg("weights").noconvert(), nb::arg("folded").noconvert(),
        nb::arg("head").noconvert(), nb::arg("offsets").noconvert(), nb::arg("low").noconvert(),
        nb::arg("high").noconvert(), nb::arg("entries").noconvert(), nb::arg("shares").noconvert(),
        nb::arg("links").noconvert(), nb::arg("layer").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"),
        nb::arg("path").none() = nb::none(),
        "Gradients of the weights, of what requests have for them, of the head, the links, their layer and the last "
        "layers.");
}

}  // namespace limerank
