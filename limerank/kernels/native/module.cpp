// The Python binding: arguments are checked here, then the work is shared among threads
// without the interpreter's lock. See limerank/ranking/scorer/native.py for what the arrays are.
#include "python.hpp"

#include <nanobind/stl/shared_ptr.h>

#include <cmath>
#include <cstring>
#include <mutex>

#include "anchors.hpp"
#include "search.hpp"
#include "select.hpp"

namespace limerank {
namespace {

constexpr std::int64_t LEAST_PER_THREAD = 2048;  // fewer items take less time than a thread

// Requests, quantised.
struct Requests {
    Requests() = default;
    Requests(Requests&&) = default;
    Requests(const Requests&) = delete;
    std::size_t count = 0, size = 0, line = 0;  // sums and codes of one request, padded
    std::vector<std::int8_t> codes;
    std::vector<float> step, constant;
    std::vector<std::int32_t> begin;
    std::size_t queries = 0, query_line = 0;  // of one request, and codes of one query
    std::vector<std::int8_t> query;
    std::vector<float> query_step, query_constant;
    std::vector<Linked> linked;  // of each request; empty without anchored links
    const void* of = nullptr;  // the scorer that made them
    Request at(std::size_t b) const {
        return {codes.data() + b * line, step.data() + b * size, constant.data() + b * size,
                begin.data() + b * size, query.data() + b * queries * query_line,
                query_step.data() + b * queries, query_constant.data() + b * queries,
                static_cast<int>(queries)};
    }
};

// Memory for what a tile's items have beyond the catalogue.
class Room {
  public:
    Room(const Catalogue& c, bool sums)
        : links_(c.link_quads > 0 ? static_cast<std::size_t>(TILE * c.link_quads) + LANES : 0),
          sums_(sums ? static_cast<std::size_t>(TILE) * static_cast<std::size_t>(c.padded_sums()) : 0, 0.0f) {}
    std::uint32_t* links() {  // aligned to 64 bytes
        const auto at = reinterpret_cast<std::uintptr_t>(links_.data());
        return links_.data() + (64 - at % 64) % 64 / sizeof(std::uint32_t);
    }
    float* sums() { return sums_.data(); }
    std::uint8_t touched[TILE / LANES] = {};
    std::int64_t at[TILE] = {};

  private:
    std::vector<std::uint32_t> links_;
    std::vector<float> sums_;
};

class Scorer {
  public:
    Scorer(In<std::uint8_t, 2> weights, In<std::int8_t, 2> terms, In<float, 1> low,
           In<float, 1> weight_step, In<float, 1> mean, In<float, 1> middle,
           In<float, 1> term_step, In<float, 2> from_links, In<float, 2> out, In<float, 1> bias,
           In<std::int32_t, 1> hidden_rows, int heads, const std::string& activation, bool gated,
           const std::optional<std::string>& path, bool held, std::shared_ptr<Anchors> anchors, int keys)
        : weights_(weights), terms_(terms), hidden_rows_(hidden_rows), anchors_(std::move(anchors)),
          path_(&path_named(path)), held_(held) {
        expect(keys >= 0 && static_cast<std::size_t>(keys) < std::max<std::size_t>(weights.shape(1), 1),
               "there are more numbers of keys than weights per item");
        const auto columns = static_cast<std::int64_t>(weights.shape(1)) - keys;
        const auto sums = static_cast<std::int64_t>(terms.shape(1));
        const auto tasks = static_cast<std::int64_t>(out.shape(0));
        const auto width = static_cast<std::int64_t>(from_links.shape(1));
        const auto hidden = static_cast<std::int64_t>(out.shape(1));
        c_.parts = gated ? 2 : 1;
        expect(columns >= 1 && columns <= MOST_COLUMNS, "expected 1 to 65536 weights per item");
        expect(hidden >= 1 && hidden <= 1 << 20 && sums == c_.parts * hidden,
               "terms, head and gate do not fit together");
        expect(tasks >= 1 && tasks <= 1 << 16, "expected 1 to 65536 tasks");
        expect(terms.shape(0) == weights.shape(0), "weights and terms are of different items");
        expect(heads >= 1 && columns % heads == 0 && width % heads == 0 && width >= heads,
               "heads divide neither the weights nor the width");
        for (const In<float, 1>* one : {&low, &weight_step, &mean})
            expect(static_cast<std::int64_t>(one->shape(0)) == columns + keys,
                   "expected one scale per weight");
        for (const In<float, 1>* one : {&middle, &term_step})
            expect(static_cast<std::int64_t>(one->shape(0)) == sums, "expected one scale per term");
        expect(static_cast<std::int64_t>(from_links.shape(0)) == sums &&
                   static_cast<std::int64_t>(bias.shape(0)) == tasks,
               "the head's layers do not fit together");
        c_.weights = weights.data();
        c_.terms = terms.data();
        c_.items = static_cast<std::int64_t>(weights.shape(0));
        c_.columns = static_cast<int>(columns);
        c_.quads = static_cast<int>((columns + 3) / 4);
        c_.keys = keys;
        c_.row_quads = static_cast<int>((columns + keys + 3) / 4);
        c_.key_quad = static_cast<int>(columns / 4);
        c_.key_quads = keys ? c_.row_quads - c_.key_quad : 0;
        c_.hidden = static_cast<int>(hidden);
        c_.padded = static_cast<int>((hidden + WIDE - 1) / WIDE * WIDE);
        if (activation == "relu") c_.activation = Activation::relu;
        else if (activation == "silu") c_.activation = Activation::silu;
        else if (activation == "hardswish") c_.activation = Activation::hardswish;
        else throw std::invalid_argument("no activation '" + activation + "'");
        c_.term_step.assign(static_cast<std::size_t>(c_.padded_sums()), 0.0f);
        for (int part = 0; part < c_.parts; part++)
            for (int j = 0; j < c_.hidden; j++)
                c_.term_step[static_cast<std::size_t>(part * c_.padded + j)] =
                    term_step.data()[part * c_.hidden + j];
        tasks_ = static_cast<std::size_t>(tasks);
        out_ = padded_rows(out.data(), tasks_);
        bias_.assign(bias.data(), bias.data() + tasks);
        // Parameters that turn links into codes.
        low_.assign(low.data(), low.data() + columns + keys);
        weight_step_.assign(weight_step.data(), weight_step.data() + columns + keys);
        mean_.assign(mean.data(), mean.data() + columns + keys);
        one_each_.assign(tasks_ * tasks_, 0.0f);
        for (std::size_t k = 0; k < tasks_; k++) one_each_[k * tasks_ + k] = 1.0f;
        middle_.assign(middle.data(), middle.data() + sums);
        layer_t_.resize(static_cast<std::size_t>(width * sums));
        for (std::int64_t j = 0; j < sums; j++)
            for (std::int64_t e = 0; e < width; e++)
                layer_t_[static_cast<std::size_t>(e * sums + j)] = from_links.data()[j * width + e];
        if (anchors_) {
            expect(static_cast<std::int64_t>(anchors_->items()) == c_.items && anchors_->sums() == sums,
                   "the anchored links are of another catalogue or model");
            expect(columns + anchors_->line() <= MOST_COLUMNS, "expected 65536 weights and anchored links at most");
            expect(static_cast<std::int64_t>(anchors_->sets()) * anchors_->quads() < std::int64_t{1} << 31,
                   "there are too many sets of anchored values");
            c_.sets = anchors_->codes();
            c_.features = anchors_->features();
            c_.set_count = anchors_->sets();
            c_.links = anchors_->links();
            c_.link_quads = anchors_->quads();
        }
        fold_ = {heads, static_cast<int>(columns) / heads, static_cast<int>(width),
                 static_cast<int>(sums), layer_t_.data(), low_.data(), weight_step_.data(),
                 mean_.data(), middle_.data(), anchors_ ? anchors_->layer_t() : nullptr};
        std::int32_t last = -1;
        for (std::size_t i = 0; i < hidden_rows.shape(0); i++) {
            const std::int32_t row = hidden_rows.data()[i];
            expect(row > last && row < c_.items, "hidden rows must ascend within the index");
            last = row;
        }
    }

    Scorer(const Scorer&) = delete;
    Scorer& operator=(const Scorer&) = delete;

    const char* path() const { return path_->name; }

    // The anchored links of request b are from offsets[b] to offsets[b + 1] of keys and anchored; `query`
    // [B, K, numbers of a key] is that of its profile.
    Requests requests(In<float, 3> links, In<float, 2> head, std::optional<In<std::int64_t, 1>> offsets,
                      std::optional<In<std::int64_t, 1>> keys, std::optional<In<float, 2>> anchored,
                      std::optional<In<float, 3>> query) const {
        const std::size_t batch = links.shape(0);
        expect(static_cast<int>(links.shape(1)) == fold_.links &&
                   static_cast<int>(links.shape(2)) == fold_.width &&
                   static_cast<int>(head.shape(1)) == fold_.sums && head.shape(0) == batch,
               "links and head terms are not of this model");
        Requests made;
        made.count = batch;
        made.size = static_cast<std::size_t>(c_.padded_sums());
        made.line = made.size * static_cast<std::size_t>(c_.code_quads()) * 4;
        made.codes.resize(batch * made.line);
        made.step.resize(batch * made.size);
        made.constant.resize(batch * made.size);
        made.begin.resize(batch * made.size);
        made.of = this;
        if (keys) {
            expect(anchors_ && offsets && anchored, "these requests have anchored links, the model has none");
            expect(offsets->shape(0) == batch + 1 && keys->shape(0) == anchored->shape(0) &&
                       static_cast<int>(anchored->shape(1)) == c_.links,
                   "the anchored links are not of these requests");
            const std::int64_t* at = offsets->data();
            for (std::size_t b = 0; b <= batch; b++)
                expect(at[b] >= (b ? at[b - 1] : 0) && at[b] <= static_cast<std::int64_t>(keys->shape(0)),
                       "the offsets of the anchored links do not ascend");
            for (std::size_t b = 0; b < batch; b++)
                expect(std::is_sorted(keys->data() + at[b], keys->data() + at[b + 1]),
                       "the keys of anchored links must ascend");
        }
        if (query) {
            expect(query->shape(0) == batch && query->shape(1) == tasks_ &&
                       query->shape(2) == static_cast<std::size_t>(c_.keys) && c_.keys > 0,
                   "the queries are not of this model");
            made.queries = tasks_;
            made.query_line = static_cast<std::size_t>(c_.key_quads) * 4;
            made.query.assign(batch * tasks_ * made.query_line, 0);
            made.query_step.resize(batch * tasks_);
            made.query_constant.resize(batch * tasks_);
        }
        nb::gil_scoped_release free;
        for (std::size_t k = 0; query && k < batch * tasks_; k++)
            quantise(query->data() + k * static_cast<std::size_t>(c_.keys), made.query.data() + k * made.query_line,
                     made.query_step[k], made.query_constant[k]);
        std::vector<float> scratch(static_cast<std::size_t>(c_.quads * 4 + 1 + c_.links) *
                                   static_cast<std::size_t>(fold_.sums));
        for (std::size_t b = 0; b < batch; b++) {
            const float* link_step = nullptr;
            if (keys) {
                const auto first = static_cast<std::size_t>(offsets->data()[b]);
                const auto end = static_cast<std::size_t>(offsets->data()[b + 1]);
                made.linked.push_back(anchors_->quantised(
                    keys->data() + first, anchored->data() + first * static_cast<std::size_t>(c_.links), end - first));
                if (made.linked.back().any()) link_step = made.linked.back().step.data();
            }
            path_->fold(c_, fold_, links.data() + b * links.shape(1) * links.shape(2),
                        head.data() + b * head.shape(1), link_step, scratch.data(),
                        made.codes.data() + b * made.line, made.step.data() + b * made.size,
                        made.constant.data() + b * made.size, made.begin.data() + b * made.size);
        }
        return made;
    }

    // Logits [B, m, K] of all items, of rows [m], or of each request's own rows [B, m]; `extra`
    // [B, m, sums] is added to the first-layer sums.
    Out<float> scores(const Requests& requests, std::optional<In<std::int64_t, 2>> rows,
                      int threads, std::optional<In<float, 3>> extra) const {
        check(requests, threads);
        const std::size_t batch = requests.count;
        std::int64_t count = c_.items;
        bool own = false;
        if (rows) {
            expect(rows->shape(0) == 1 || rows->shape(0) == batch,
                   "rows are for another number of requests");
            own = rows->shape(0) != 1;
            count = static_cast<std::int64_t>(rows->shape(1));
            check_rows(rows->data(), rows->size());
        }
        const auto sums = static_cast<std::size_t>(c_.sums());
        if (extra)
            expect(extra->shape(0) == batch && static_cast<std::int64_t>(extra->shape(1)) == count &&
                       extra->shape(2) == sums,
                   "extra is not [requests, rows, first-layer sums]");
        std::vector<float> found(batch * static_cast<std::size_t>(count) * tasks_);
        {
            nb::gil_scoped_release free;
            const Head head = {out_.data(), bias_.data(), static_cast<int>(tasks_), one_each_.data()};
            in_threads(count, TILE, LEAST_PER_THREAD, threads, [&](int, std::int64_t low, std::int64_t high) {
                Blocks blocks(c_, TILE);
                std::vector<float> room(TILE * tasks_);
                Room beyond(c_, extra.has_value());
                for (std::int64_t at = low; at < high; at += TILE) {
                    const int size = static_cast<int>(std::min<std::int64_t>(TILE, high - at));
                    for (std::size_t b = 0; b < batch; b++) {
                        const std::int64_t* of = nullptr;
                        if (rows) of = rows->data() + (own ? b : 0) * rows->shape(1) + at;
                        if (b == 0 || own) path_->pack(c_, of, at, size, blocks.data());
                        Additions more = linked(requests, b, blocks.data(), of, at, size, beyond);
                        if (extra) {
                            const std::size_t first = b * static_cast<std::size_t>(count) + static_cast<std::size_t>(at);
                            spread(extra->data() + first * sums, size, beyond.sums());
                            more.sums = beyond.sums();
                        }
                        path_->score(c_, blocks.data(), size, 0, requests.at(b), more, head, room.data());
                        float* to = found.data() +
                                    (b * static_cast<std::size_t>(count) + static_cast<std::size_t>(at)) * tasks_;
                        unpack(room.data(), size, to);
                    }
                }
            });
        }
        return array(std::move(found), {batch, static_cast<std::size_t>(count), tasks_});
    }

    // The best k of each request by the weighted sum of its logits.
    //   weights [B, K]; rows [m], a set, or none for all items;
    //   exclude [x], the rows of request b from exclude_ends[b - 1] to exclude_ends[b];
    //   allow [1, n] or [B, n], or none.
    nb::tuple top(const Requests& requests, std::int64_t k, In<float, 2> weights,
                  std::optional<In<std::int64_t, 1>> given_rows, In<std::int64_t, 1> given_exclude,
                  In<std::int64_t, 1> exclude_ends, std::optional<In<bool, 2>> allow,
                  int threads) const {
        check(requests, threads);
        const std::size_t batch = requests.count;
        expect(k >= 1, "k is below 1");
        expect(weights.shape(0) == batch && weights.shape(1) == tasks_,
               "task weights are not [requests, tasks]");
        std::vector<std::int64_t> chosen, exclude(given_exclude.data(), given_exclude.data() + given_exclude.size());
        const std::int64_t* rows = nullptr;
        std::int64_t count = c_.items;
        if (given_rows) {
            chosen.assign(given_rows->data(), given_rows->data() + given_rows->size());
            check_rows(chosen.data(), chosen.size());
            ascend(chosen.begin(), chosen.end());
            chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
            rows = chosen.data();
            count = static_cast<std::int64_t>(chosen.size());
        }
        check_rows(exclude.data(), exclude.size());
        expect(exclude_ends.shape(0) == batch, "exclusions are for another number of requests");
        std::int64_t end = 0;
        for (std::size_t b = 0; b < batch; b++) {
            const std::int64_t next = exclude_ends.data()[b];
            expect(next >= end && next <= static_cast<std::int64_t>(exclude.size()),
                   "the ends of the exclusions do not ascend");
            ascend(exclude.begin() + end, exclude.begin() + next);
            end = next;
        }
        if (allow)
            expect((allow->shape(0) == 1 || allow->shape(0) == batch) &&
                       static_cast<std::int64_t>(allow->shape(1)) == c_.items,
                   "allow is not [1 or requests, items]");

        const bool everyone = allow && allow->shape(0) == 1;
        const bool none = given_rows && chosen.empty();  // no rows, and not all of them
        k = none ? 0 : std::min(k, places(rows, count, everyone ? allow->data() : nullptr));
        const auto size = static_cast<std::size_t>(k);
        std::vector<std::int64_t> best(batch * size, -1);
        std::vector<float> values(batch * size, -std::numeric_limits<float>::infinity());
        std::vector<float> logits(batch * size * tasks_, std::numeric_limits<float>::quiet_NaN());
        if (k > 0) {
            nb::gil_scoped_release free;
            std::vector<float> combined(batch * static_cast<std::size_t>(c_.padded));
            std::vector<float> bias(batch);
            for (std::size_t b = 0; b < batch; b++)
                combine(weights.data() + b * tasks_, combined.data() + b * static_cast<std::size_t>(c_.padded), bias[b]);
            const auto used = static_cast<std::size_t>(std::max(1, threads));
            std::vector<std::vector<Best>> of_threads(used);
            Blocks* const whole = rows ? nullptr : laid_out(threads);
            const std::int64_t next = whole ? TILE / LANES * Blocks::stride(c_) : 0;
            in_threads(count, TILE, LEAST_PER_THREAD, threads, [&](int t, std::int64_t low, std::int64_t high) {
                std::vector<Best>& held = of_threads[static_cast<std::size_t>(t)];
                held.assign(batch, Best(size));
                Blocks blocks(c_, whole ? 0 : TILE);
                alignas(64) float room[TILE];
                Room beyond(c_, false);
                for (std::int64_t at = low; at < high; at += TILE) {
                    const int here = static_cast<int>(std::min<std::int64_t>(TILE, high - at));
                    const std::int64_t* of = rows ? rows + at : nullptr;
                    if (everyone && !any(allow->data(), of, at, here)) continue;
                    const std::uint32_t* tile = whole ? whole->of(at) : blocks.data();
                    if (!whole) path_->pack(c_, of, at, here, blocks.data());
                    for (std::size_t b = 0; b < batch; b++) {
                        const Head head = {combined.data() + b * static_cast<std::size_t>(c_.padded), &bias[b], 1,
                                           weights.data() + b * tasks_};
                        const std::int64_t ahead = b == 0 && at + TILE < high ? next : 0;
                        const Additions more = linked(requests, b, tile, of, at, here, beyond);
                        path_->score(c_, tile, here, ahead, requests.at(b), more, head, room);
                        const std::int64_t from = b ? exclude_ends.data()[b - 1] : 0;
                        const std::int64_t* excluded = exclude.data() + from;
                        const std::int64_t* excluded_end = exclude.data() + exclude_ends.data()[b];
                        const bool* allowed = nullptr;
                        if (allow) allowed = allow->data() + (everyone ? 0 : b * allow->shape(1));
                        offer(held[b], room, here, of, at, excluded, excluded_end, allowed);
                    }
                }
            });
            Blocks blocks(c_, TILE);
            std::vector<float> room(TILE * tasks_);
            Room beyond(c_, false);
            const Head head = {out_.data(), bias_.data(), static_cast<int>(tasks_), one_each_.data()};
            for (std::size_t b = 0; b < batch; b++) {
                std::vector<Found> all;
                for (std::vector<Best>& held : of_threads) {
                    if (held.empty()) continue;
                    const std::vector<Found>& some = held[b].sorted();
                    all.insert(all.end(), some.begin(), some.end());
                }
                if (used > 1) std::sort(all.begin(), all.end(), before);
                const std::size_t there = std::min(size, all.size());
                for (std::size_t i = 0; i < there; i++) {
                    best[b * size + i] = all[i].row;
                    values[b * size + i] = all[i].value + 0.0f;
                }
                for (std::size_t at = 0; at < there; at += TILE) {
                    const int here = static_cast<int>(std::min<std::size_t>(TILE, there - at));
                    const std::int64_t* of = best.data() + b * size + at;
                    path_->pack(c_, of, 0, here, blocks.data());
                    const Additions more = linked(requests, b, blocks.data(), of, 0, here, beyond);
                    path_->score(c_, blocks.data(), here, 0, requests.at(b), more, head, room.data());
                    unpack(room.data(), here, logits.data() + (b * size + at) * tasks_);
                }
            }
        }
        return nb::make_tuple(array(std::move(best), {batch, size}),
                              array(std::move(values), {batch, size}),
                              array(std::move(logits), {batch, size, tasks_}));
    }

  private:
    // All items, laid out when they are first scored; none if the scorer does not store them.
    Blocks* laid_out(int threads) const {
        if (!held_) return nullptr;
        std::call_once(once_, [&] {
            blocks_.emplace(c_, c_.items);
            in_threads(c_.items, TILE, LEAST_PER_THREAD, threads, [&](int, std::int64_t low, std::int64_t high) {
                for (std::int64_t at = low; at < high; at += TILE) {
                    const int size = static_cast<int>(std::min<std::int64_t>(TILE, high - at));
                    path_->pack(c_, nullptr, at, size, blocks_->of(at));
                }
            });
        });
        return &*blocks_;
    }

    // What the anchored links of a request give a tile's items: `count` rows, or without rows those from
    // `first` on, laid out in `tile`.
    Additions linked(const Requests& requests, std::size_t b, const std::uint32_t* tile,
                     const std::int64_t* rows, std::int64_t first, int count, Room& room) const {
        Additions more;
        if (requests.linked.empty() || !requests.linked[b].any()) return more;
        const Linked& of = requests.linked[b];
        const auto line = static_cast<std::size_t>(anchors_->line());
        std::uint32_t* links = room.links();
        bool begun = of.table != nullptr;
        if (begun) path_->look_up_links(c_, tile, count, of.table.get(), links, room.touched);
        const auto patch = [&](int place, std::size_t item) {
            if (!begun) {
                std::fill_n(links, TILE * c_.link_quads, 0x80808080u);
                std::fill_n(room.touched, TILE / LANES, std::uint8_t{0});
                begun = true;
            }
            const int block = place / LANES;
            room.touched[block] = 1;
            for (std::size_t j = 0; j < line; j++) {
                std::uint32_t& four = links[(block * c_.link_quads + static_cast<int>(j / 4)) * LANES + place % LANES];
                const std::uint32_t shift = 8 * (j % 4);
                const std::uint32_t byte = (four >> shift) + static_cast<std::uint32_t>(of.codes[item * line + j]);
                four = (four & ~(0xFFu << shift)) | (byte & 0xFFu) << shift;
            }
        };
        if (rows) {
            lower_bounds(of.rows.data(), of.rows.size(), rows, static_cast<std::size_t>(count), room.at);
            for (int j = 0; j < count; j++) {
                const auto item = static_cast<std::size_t>(room.at[j]);
                if (item < of.rows.size() && of.rows[item] == rows[j]) patch(j, item);
            }
        } else {
            auto item = static_cast<std::size_t>(std::lower_bound(of.rows.begin(), of.rows.end(), first) - of.rows.begin());
            for (; item < of.rows.size() && of.rows[item] < first + count; item++)
                patch(static_cast<int>(of.rows[item] - first), item);
        }
        if (begun) {
            more.links = links;
            more.touched = room.touched;
        }
        return more;
    }

    // Sums of items [count, sums] -> [blocks][padded sums][LANES].
    void spread(const float* from, int count, float* to) const {
        for (int i = 0; i < count; i++) {
            float* lane = to + static_cast<std::ptrdiff_t>(i / LANES) * c_.padded_sums() * LANES + i % LANES;
            for (int part = 0; part < c_.parts; part++)
                for (int j = 0; j < c_.hidden; j++)
                    lane[static_cast<std::ptrdiff_t>(part * c_.padded + j) * LANES] =
                        from[static_cast<std::ptrdiff_t>(i) * c_.sums() + part * c_.hidden + j];
        }
    }

    // Codes of a query by the quads in which keys lie, with its step and its constant.
    void quantise(const float* query, std::int8_t* codes, float& step, float& constant) const {
        const int first = c_.columns, begin = c_.columns % 4;
        float most = 0;
        for (int s = 0; s < c_.keys; s++)
            most = std::max(most, std::abs(weight_step_[static_cast<std::size_t>(first + s)] * query[s]));
        step = most > 0 ? most / 127 : 1;
        constant = 0;
        for (int s = 0; s < c_.keys; s++) {
            const auto column = static_cast<std::size_t>(first + s);
            const float scaled = weight_step_[column] * query[s], code = std::nearbyint(scaled / step);
            constant += low_[column] * query[s] + mean_[column] * (scaled - step * code);  // NaN, where queries are
            codes[begin + s] = static_cast<std::int8_t>(code >= -127 && code <= 127 ? code : 0);
        }
    }

    void check(const Requests& requests, int threads) const {
        expect(requests.of == this, "these requests were made by another scorer");
        expect(threads >= 1 && threads <= 1024, "expected 1 to 1024 threads");
    }

    void check_rows(const std::int64_t* rows, std::size_t count) const {
        for (std::size_t i = 0; i < count; i++)
            if (rows[i] < 0 || rows[i] >= c_.items)
                throw std::out_of_range("the index has rows 0 .. " + std::to_string(c_.items - 1) +
                                        "; got " + std::to_string(rows[i]));
    }

    template <class Iterator>
    static void ascend(Iterator begin, Iterator end) {
        if (!std::is_sorted(begin, end)) std::sort(begin, end);
    }

    // Number of candidates that are allowed for all requests and not hidden.
    std::int64_t places(const std::int64_t* rows, std::int64_t count, const bool* allowed) const {
        const std::int32_t* hidden = hidden_rows_.data();
        const std::int32_t* hidden_end = hidden + hidden_rows_.size();
        std::int64_t found = 0;
        if (!rows) {
            if (!allowed) return count - (hidden_end - hidden);
            for (std::int64_t i = 0; i < count; i++) found += allowed[i];
            for (; hidden != hidden_end; hidden++) found -= allowed[*hidden];
            return found;
        }
        for (std::int64_t i = 0; i < count; i++) {
            hidden = std::lower_bound(hidden, hidden_end, rows[i]);
            const bool is_hidden = hidden != hidden_end && *hidden == rows[i];
            found += !is_hidden && (!allowed || allowed[rows[i]]);
        }
        return found;
    }

    std::vector<float> padded_rows(const float* from, std::size_t rows) const {
        std::vector<float> to(rows * static_cast<std::size_t>(c_.padded), 0.0f);
        for (std::size_t k = 0; k < rows; k++)
            std::memcpy(to.data() + k * static_cast<std::size_t>(c_.padded), from + k * static_cast<std::size_t>(c_.hidden),
                        static_cast<std::size_t>(c_.hidden) * sizeof(float));
        return to;
    }

    // The layer whose output is the weighted sum of the tasks' logits.
    void combine(const float* weights, float* layer, float& bias) const {
        bias = 0;
        for (std::size_t k = 0; k < tasks_; k++) {
            bias += weights[k] * bias_[k];
            const float* of = out_.data() + k * static_cast<std::size_t>(c_.padded);
            for (int j = 0; j < c_.padded; j++) layer[j] += weights[k] * of[j];
        }
    }

    void unpack(const float* room, int count, float* to) const {
        for (int i = 0; i < count; i++)
            for (std::size_t k = 0; k < tasks_; k++)
                to[static_cast<std::size_t>(i) * tasks_ + k] =
                    room[(static_cast<std::size_t>(i / LANES) * tasks_ + k) * LANES + static_cast<std::size_t>(i % LANES)];
    }

    static bool any(const bool* allowed, const std::int64_t* rows, std::int64_t first, int count) {
        if (!rows) return std::memchr(allowed + first, 1, static_cast<std::size_t>(count)) != nullptr;
        for (int i = 0; i < count; i++)
            if (allowed[rows[i]]) return true;
        return false;
    }

    // Values of a tile's items -> those that are high enough and allowed.
    void offer(Best& best, float* values, int count, const std::int64_t* rows, std::int64_t first,
               const std::int64_t* excluded, const std::int64_t* excluded_end, const bool* allowed) const {
        constexpr float least = -std::numeric_limits<float>::infinity();
        const std::int32_t* hidden = hidden_rows_.data();
        const std::int32_t* hidden_end = hidden + hidden_rows_.shape(0);
        for (int at = 0; at < count; at += LANES) {
            const int size = std::min(LANES, count - at);
            if (best.full()) {
                int above = 0;
                for (int i = 0; i < LANES; i++) above += values[at + i] > best.threshold();
                if (above == 0) continue;
            }
            for (int i = at; i < at + size; i++) {
                const float value = std::isnan(values[i]) ? least : values[i];
                if (!best.welcome(value)) continue;
                const std::int64_t row = rows ? rows[i] : first + i;
                if (allowed && !allowed[row]) continue;
                if (std::binary_search(excluded, excluded_end, row)) continue;
                if (hidden != hidden_end && std::binary_search(hidden, hidden_end, row)) continue;
                best.offer(value, row);
            }
        }
    }

    In<std::uint8_t, 2> weights_;  // stays alive: `c_` points into them
    In<std::int8_t, 2> terms_;
    In<std::int32_t, 1> hidden_rows_;
    std::shared_ptr<Anchors> anchors_;
    const Path* path_;
    const bool held_;
    mutable std::once_flag once_;
    mutable std::optional<Blocks> blocks_;
    Catalogue c_;
    Fold fold_{};
    std::size_t tasks_ = 0;
    std::vector<float> out_, bias_, low_, weight_step_, mean_, middle_, layer_t_, one_each_;
};

}  // namespace
}  // namespace limerank

NB_MODULE(_native, m) {
    using namespace limerank;
    // Objects in frames of exceptions or module variables when the interpreter ends are not leaks.
    nb::set_leak_warnings(false);
    m.doc() = "Scores the items of an index in integer arithmetic, see limerank.ranking.scorer.native; and the "
              "user stage of LIME, see limerank.kernels.personal.";
    m.attr("SILU_ERROR") = SILU_ERROR;
    m.def("paths", [] {
        std::vector<std::string> names;
        for (const Path* path : limerank::paths()) names.emplace_back(path->name);
        return names;
    }, "Names of the implementations that this machine can run, the fastest first.");
    m.def("peak", [](const std::string& path, std::int64_t rounds) {
        std::int32_t sink[LANES] = {1};
        const Path& chosen = path_named(path);
        nb::gil_scoped_release free;
        return chosen.peak(rounds, sink);
    }, nb::arg("path"), nb::arg("rounds"),
       "Multiply bytes in registers alone; returns how many multiply-adds that were.");
    m.def("search", [](In<std::int64_t, 1> keys, In<std::int64_t, 1> wanted) {
        std::vector<std::int64_t> at(wanted.shape(0));
        {
            nb::gil_scoped_release free;
            lower_bounds(keys.data(), keys.shape(0), wanted.data(), at.size(), at.data());
        }
        return array(std::move(at), {wanted.shape(0)});
    }, nb::arg("keys").noconvert(), nb::arg("wanted").noconvert(),
       "numpy.searchsorted(keys, wanted), several times as fast.");
    m.def("find", [](In<std::int64_t, 1> keys, In<std::int32_t, 1> rows, In<std::int64_t, 1> wanted) {
        expect(keys.shape(0) == rows.shape(0), "there is not one row for each key");
        std::vector<std::int64_t> found(wanted.shape(0));
        {
            nb::gil_scoped_release free;
            rows_of(keys.data(), rows.data(), keys.shape(0), wanted.data(), found.size(), found.data());
        }
        return array(std::move(found), {wanted.shape(0)});
    }, nb::arg("keys").noconvert(), nb::arg("rows").noconvert(), nb::arg("wanted").noconvert(),
       "The row of each wanted key among ascending keys; -1 where there is none.");
    m.def("integers", [](nb::list values) -> nb::object {
        std::vector<std::int64_t> numbers(values.size());
        for (std::size_t j = 0; j < numbers.size(); ++j) {
            PyObject* value = PyList_GET_ITEM(values.ptr(), static_cast<Py_ssize_t>(j));
            if (!PyLong_CheckExact(value)) return nb::none();
            int beyond = 0;
            numbers[j] = PyLong_AsLongLongAndOverflow(value, &beyond);
            if (beyond != 0) return nb::none();
        }
        const std::size_t count = numbers.size();
        return nb::cast(array(std::move(numbers), {count}));
    }, nb::arg("values"),
       "A list of nothing but 64-bit integers as an array; None for any other list.");
    nb::class_<Requests>(m, "Requests").def("__len__", [](const Requests& r) { return r.count; });
    nb::class_<Anchors>(m, "Anchors")
        .def(nb::init<In<std::int32_t, 2>, In<std::int64_t, 1>, In<std::int32_t, 1>, In<float, 1>,
                      In<std::int32_t, 1>, std::int64_t, In<float, 2>>(),
             nb::arg("codes").noconvert(), nb::arg("keys").noconvert(), nb::arg("sets").noconvert(),
             nb::arg("shares").noconvert(), nb::arg("kinds").noconvert(), nb::arg("item_tokens"),
             nb::arg("layer").noconvert());
    nb::class_<Scorer>(m, "Scorer")
        .def(nb::init<In<std::uint8_t, 2>, In<std::int8_t, 2>, In<float, 1>, In<float, 1>,
                      In<float, 1>, In<float, 1>, In<float, 1>, In<float, 2>, In<float, 2>,
                      In<float, 1>, In<std::int32_t, 1>, int, const std::string&, bool,
                      const std::optional<std::string>&, bool, std::shared_ptr<Anchors>, int>(),
             nb::arg("weights").noconvert(), nb::arg("terms").noconvert(), nb::arg("weight_low"),
             nb::arg("weight_step"), nb::arg("weight_mean"), nb::arg("term_middle"),
             nb::arg("term_step"), nb::arg("from_links"), nb::arg("out"), nb::arg("bias"),
             nb::arg("hidden_rows").noconvert(), nb::arg("heads"), nb::arg("activation"),
             nb::arg("gated"), nb::arg("path").none(), nb::arg("held"), nb::arg("anchors") = nb::none(),
             nb::arg("keys") = 0)
        .def_prop_ro("path", &Scorer::path)
        .def("requests", &Scorer::requests, nb::arg("links").noconvert(),
             nb::arg("head").noconvert(), nb::arg("offsets").noconvert() = nb::none(),
             nb::arg("keys").noconvert() = nb::none(), nb::arg("anchored").noconvert() = nb::none(),
             nb::arg("query").noconvert() = nb::none())
        .def("scores", &Scorer::scores, nb::arg("requests"), nb::arg("rows").noconvert().none(),
             nb::arg("threads"), nb::arg("extra").noconvert() = nb::none())
        .def("top", &Scorer::top, nb::arg("requests"), nb::arg("k"),
             nb::arg("weights").noconvert(), nb::arg("rows").noconvert().none(),
             nb::arg("exclude").noconvert(), nb::arg("exclude_ends").noconvert(),
             nb::arg("allow").noconvert().none(), nb::arg("threads"));
    add_personaliser(m);
    add_anchored_links(m);
    add_profiles(m);
    add_shared_logits(m);
}
