// The anchored links of histories: limerank/models/anchors.py without gradients. Pairs of a key and an
// event are grouped by a radix sort, and each group becomes one link.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "python.hpp"

namespace limerank {
namespace {

constexpr int LINE = 16, SIDE = 8;  // hidden units, and numbers of a link, that are summed together
constexpr int MOST_STATISTICS = 512;
constexpr int DIGIT = 11, BUCKETS = 1 << DIGIT;

struct Pair {
    std::int64_t key;
    std::int32_t event, kind;
};

// Pairs by key; those of one key stay in order.
void sort_pairs(std::vector<Pair>& pairs, std::vector<Pair>& room) {
    std::int64_t most = 0;
    for (const Pair& pair : pairs) most = std::max(most, pair.key);
    room.resize(pairs.size());
    for (int shift = 0; shift < 63 && (most >> shift) > 0; shift += DIGIT) {
        std::array<std::uint32_t, BUCKETS> ends{};
        for (const Pair& pair : pairs) ends[static_cast<std::size_t>(pair.key >> shift & (BUCKETS - 1))]++;
        std::uint32_t end = 0;
        for (std::uint32_t& of : ends) {
            const std::uint32_t count = of;
            of = end;
            end += count;
        }
        for (const Pair& pair : pairs) room[ends[static_cast<std::size_t>(pair.key >> shift & (BUCKETS - 1))]++] = pair;
        pairs.swap(room);
    }
}

// A piecewise linear scale: the lower of the two nearest knots, and the weight of the upper one.
struct Scale {
    const float* knots;
    int count;
    std::pair<int, float> at(float x) const {
        x = std::min(std::max(x, knots[0]), knots[count - 1]);
        int low = 0;
        while (low + 2 < count && x >= knots[low + 1]) low++;
        return {low, count < 2 ? 0.0f : (x - knots[low]) / (knots[low + 1] - knots[low])};
    }
};

// A network of two layers, with one column of `first` for each statistic; both sides are padded.
struct Network {
    int hidden = 0, links = 0;
    std::vector<float> first, once, bias, second;  // [statistics][hidden], [outcomes][hidden], [hidden], [hidden][links]
    void lay_out(const float* w1, const float* b1, const float* w2, int units, int numbers, int statistics, int outcomes) {
        hidden = (units + LINE - 1) / LINE * LINE;
        links = (numbers + SIDE - 1) / SIDE * SIDE;
        first.assign(static_cast<std::size_t>(statistics * hidden), 0.0f);
        once.assign(static_cast<std::size_t>(outcomes * hidden), 0.0f);
        bias.assign(static_cast<std::size_t>(hidden), 0.0f);
        second.assign(static_cast<std::size_t>(hidden * links), 0.0f);
        for (int j = 0; j < units; j++) {
            for (int s = 0; s < statistics; s++) first[static_cast<std::size_t>(s * hidden + j)] = w1[j * statistics + s];
            // Of a key with one event: its two means and its newest outcome are that of the event.
            for (int s = 0; s < 3 * outcomes; s++) once[static_cast<std::size_t>(s % outcomes * hidden + j)] += w1[j * statistics + s];
            bias[static_cast<std::size_t>(j)] = b1[j];
            for (int r = 0; r < numbers; r++) second[static_cast<std::size_t>(j * links + r)] = w2[r * units + j];
        }
    }
};

// The statistics that are not zero: rows of the first layer, and their values.
struct Statistics {
    const float* rows[MOST_STATISTICS];
    float values[MOST_STATISTICS];
    int count = 0;
    void add(const float* row, float value) {
        rows[count] = row;
        values[count++] = value;
    }
};

// Kinds of GCC and Clang.
using Line = float __attribute__((vector_size(LINE * sizeof(float))));
using Bits = std::int32_t __attribute__((vector_size(LINE * sizeof(std::int32_t))));
using Side = float __attribute__((vector_size(SIDE * sizeof(float))));
#define INLINE inline __attribute__((always_inline))

template <class T>
INLINE void load(T& to, const float* from) {
    std::memcpy(&to, from, sizeof to);
}

// SiLU, by a polynomial for the exponential: within a few units of the last place.
INLINE void silu(Line& x) {
    const Line zero = {}, most = zero + 80.0f;
    Line t = zero - x;
    t = t < most ? t : most;
    t = t > -most ? t : -most;
    t *= 1.44269504f;
    const Line whole = (t + 12582912.0f) - 12582912.0f, f = t - whole;
    Line p = zero + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const Bits bits = (__builtin_convertvector(whole, Bits) + 127) << 23;
    Line scale;
    std::memcpy(&scale, &bits, sizeof scale);
    x = x / (1.0f + p * scale);
}

FASTEST void through(const Network& net, const Statistics& of, float evidence, float scale, float* z) {
    for (int r = 0; r < net.links; r++) z[r] = 0;
    for (int at = 0; at < net.hidden; at += LINE) {
        Line sum = {}, row;
        for (int i = 0; i < of.count; i++) {
            load(row, of.rows[i] + at);
            sum += of.values[i] * row;
        }
        load(row, net.bias.data() + at);
        sum = evidence * sum + row;
        silu(sum);
        for (int r = 0; r < net.links; r += SIDE) {
            Side part, weights;
            load(part, z + r);
            for (int j = 0; j < LINE; j++) {
                load(weights, net.second.data() + (at + j) * net.links + r);
                part += sum[j] * weights;
            }
            std::memcpy(z + r, &part, sizeof part);
        }
    }
    for (int r = 0; r < net.links; r++) z[r] *= scale;
}

struct Found {
    std::vector<std::int64_t> keys;
    std::vector<float> links;
};

nb::tuple anchored_links(In<std::int64_t, 2> items, In<std::int64_t, 3> tokens, In<float, 2> age,
                         In<std::int64_t, 1> lengths, In<std::int64_t, 1> key_offsets,
                         In<std::int64_t, 1> keys, In<float, 1> shares, In<std::int64_t, 2> features, bool item_links,
                         std::int64_t item_tokens, In<float, 2> outcomes, In<float, 1> prior,
                         const std::vector<In<float, 2>>& first, const std::vector<In<float, 1>>& bias,
                         const std::vector<In<float, 2>>& second, In<float, 1> scales, bool neighbours, float fading,
                         In<float, 1> counts, In<float, 1> ago, In<float, 1> ages, In<float, 1> since,
                         std::int64_t positive, float per_day, int threads) {
    const std::size_t batch = items.shape(0), width = items.shape(1), each = tokens.shape(2);
    const std::size_t maps = neighbours ? 3 : 2;
    expect(first.size() == maps && bias.size() == maps && second.size() == maps,
           "expected networks of items, of values and, where there are some, of neighbours");
    const auto o = static_cast<int>(outcomes.shape(1)), links = static_cast<int>(second[0].shape(0));
    const bool known_positive = positive >= 0;
    const auto statistics = static_cast<int>(3 * outcomes.shape(1) + counts.size() + ago.size() + ages.size() +
                                             (known_positive ? since.size() : 0));
    const auto kinds = static_cast<int>(features.shape(0)) + 1;
    expect(tokens.shape(0) == batch && tokens.shape(1) == width && age.shape(0) == batch &&
               age.shape(1) == width && lengths.shape(0) == batch,
           "the parts of the histories do not fit together");
    expect(key_offsets.shape(0) >= 1 && features.shape(1) == 2 && counts.size() && ago.size() && ages.size() &&
               since.size(),
           "the keys of the items are not complete");
    expect(links >= 1 && statistics <= MOST_STATISTICS && prior.shape(0) == maps && static_cast<int>(scales.shape(0)) == kinds,
           "the layers of the anchored links do not fit together");
    for (std::size_t map = 0; map < maps; map++)
        expect(static_cast<int>(first[map].shape(1)) == statistics && first[map].shape(0) == bias[map].shape(0) &&
                   first[map].shape(0) == second[map].shape(1) && static_cast<int>(second[map].shape(0)) == links,
               "the layers of the anchored links do not fit together");
    const auto known = static_cast<std::int64_t>(key_offsets.shape(0)) - 1;
    bool fine = true;
    for (std::int64_t i = 0; i <= known; i++)
        fine = fine && key_offsets.data()[i] >= (i ? key_offsets.data()[i - 1] : 0) &&
               key_offsets.data()[i] <= static_cast<std::int64_t>(keys.shape(0));
    expect(fine, "the offsets of the keys do not ascend");
    // Keys of neighbours are below 0, and above `lowest`.
    const std::int64_t lowest = neighbours ? features.data()[2 * (features.shape(0) - 1)] : 0;
    expect(lowest <= 0 && shares.size() == keys.size(), "the keys of neighbours are not complete");
    for (std::size_t i = 0; i < keys.size(); i++) fine = fine && keys.data()[i] >= lowest;
    expect(fine, "a key is too low");
    for (std::size_t b = 0; b < batch; b++) {
        const std::int64_t length = lengths.data()[b];
        expect(length >= 0 && length <= static_cast<std::int64_t>(width), "a history is longer than its batch");
        const std::size_t begin = b * width, end = begin + static_cast<std::size_t>(length);
        for (std::size_t at = begin; at < end; at++) fine = fine && items.data()[at] >= 0 && items.data()[at] < known;
        for (std::size_t at = begin * each; at < end * each; at++)
            fine = fine && tokens.data()[at] >= 0 && tokens.data()[at] < static_cast<std::int64_t>(outcomes.shape(0));
        expect(fine, "an item of a history has no keys, or an event's token is unknown");
    }

    std::vector<Found> found(batch);
    {
        nb::gil_scoped_release free;
        Network networks[3];  // of items, of values, of neighbours
        for (std::size_t map = 0; map < maps; map++)
            networks[map].lay_out(first[map].data(), bias[map].data(), second[map].data(),
                                  static_cast<int>(first[map].shape(0)), links, statistics, o);
        const Scale of_count = {counts.data(), static_cast<int>(counts.size())};
        const Scale of_ago = {ago.data(), static_cast<int>(ago.size())};
        const Scale of_age = {ages.data(), static_cast<int>(ages.size())};
        const Scale of_since = {since.data(), static_cast<int>(since.size())};
        // Of the networks; the priors begin with that of values.
        const float odds[3] = {std::exp(prior.data()[1]), std::exp(prior.data()[0]), neighbours ? std::exp(prior.data()[2]) : 0.0f};
        std::vector<float> logs(width + 2, 0.0f), fades(width + 1, 1.0f);
        for (std::size_t n = 1; n < logs.size(); n++) logs[n] = std::log2(static_cast<float>(n));
        for (std::size_t n = 1; n < fades.size(); n++) fades[n] = faded(fades[n - 1], fading);

        in_threads(static_cast<std::int64_t>(batch), 1, 8, threads, [&](int, std::int64_t first, std::int64_t last) {
            std::vector<Pair> pairs, room;
            std::vector<float> outcome(width * static_cast<std::size_t>(o)), mean(static_cast<std::size_t>(3 * o));
            for (std::int64_t b = first; b < last; b++) {
                const auto length = static_cast<std::size_t>(lengths.data()[b]);
                const std::size_t begin = static_cast<std::size_t>(b) * width;
                pairs.clear();
                std::fill(outcome.begin(), outcome.end(), 0.0f);
                std::int64_t newest_positive = -1;
                for (std::size_t n = 0; n < length; n++) {
                    float* to = outcome.data() + n * static_cast<std::size_t>(o);
                    for (std::size_t a = 0; a < each; a++) {
                        const std::int64_t token = tokens.data()[(begin + n) * each + a];
                        if (token == positive) newest_positive = static_cast<std::int64_t>(n);
                        const float* of = outcomes.data() + token * o;
                        for (int j = 0; j < o; j++) to[j] += of[j];
                    }
                    const std::int64_t item = items.data()[begin + n];
                    for (std::int64_t at = key_offsets.data()[item]; at < key_offsets.data()[item + 1]; at++) {
                        const std::int64_t key = keys.data()[at];
                        std::int32_t kind = -1;
                        if (key >= item_tokens) kind = item_links ? 0 : -1;
                        else if (key < 0) kind = shares.data()[at] == 0.0f && key > lowest ? kinds - 1 : -1;  // its own alone
                        else
                            for (int f = 0; f + 1 < kinds; f++) {
                                const std::int64_t start = features.data()[2 * f];
                                if (key > start && key < start + features.data()[2 * f + 1]) kind = f + 1;
                            }
                        if (kind >= 0) pairs.push_back({key - lowest, static_cast<std::int32_t>(n), kind});
                    }
                }
                sort_pairs(pairs, room);
                Found& to = found[static_cast<std::size_t>(b)];
                std::vector<float> z(static_cast<std::size_t>(networks[0].links));
                for (std::size_t at = 0; at < pairs.size();) {
                    std::size_t end = at;
                    while (end < pairs.size() && pairs[end].key == pairs[at].key) end++;
                    const std::size_t n = end - at;
                    const auto event = static_cast<std::size_t>(pairs[end - 1].event);
                    const int map = pairs[at].kind == 0 ? 0 : neighbours && pairs[at].kind == kinds - 1 ? 2 : 1;
                    const Network& net = networks[map];
                    const float* rows = net.first.data();
                    Statistics held;
                    const float* newest = outcome.data() + event * static_cast<std::size_t>(o);
                    if (n == 1) {
                        for (int j = 0; j < o; j++) held.add(net.once.data() + j * net.hidden, newest[j]);
                    } else {
                        std::fill(mean.begin(), mean.end(), 0.0f);
                        float faded_sum = 0;
                        for (std::size_t i = at; i < end; i++) {
                            const float* of = outcome.data() + static_cast<std::size_t>(pairs[i].event) * static_cast<std::size_t>(o);
                            const float weight = fades[std::min(end - 1 - i, fades.size() - 1)];
                            faded_sum += weight;
                            for (int j = 0; j < o; j++) {
                                mean[static_cast<std::size_t>(j)] += of[j];
                                mean[static_cast<std::size_t>(o + j)] += weight * of[j];
                            }
                        }
                        for (int j = 0; j < o; j++) {
                            held.add(rows + j * net.hidden, mean[static_cast<std::size_t>(j)] / static_cast<float>(n));
                            held.add(rows + (o + j) * net.hidden, mean[static_cast<std::size_t>(o + j)] / faded_sum);
                            held.add(rows + (2 * o + j) * net.hidden, newest[j]);
                        }
                    }
                    int row = 3 * o;
                    const auto knot = [&](const Scale& scale, float x) {
                        const auto [low, weight] = scale.at(x);
                        held.add(rows + (row + low) * net.hidden, 1 - weight);
                        if (scale.count > 1) held.add(rows + (row + low + 1) * net.hidden, weight);
                        row += scale.count;
                    };
                    knot(of_count, n < logs.size() ? logs[n] : std::log2(static_cast<float>(n)));
                    knot(of_ago, logs[length - event]);
                    knot(of_age, std::log2(1 + per_day * age.data()[begin + event]));
                    if (known_positive && newest_positive >= 0) {
                        const std::int64_t after = static_cast<std::int64_t>(event) - newest_positive;
                        const float scale = logs[static_cast<std::size_t>(after < 0 ? 1 - after : 1 + after)];
                        knot(of_since, after < 0 ? -scale : scale);
                    }
                    const float count = static_cast<float>(n);
                    const float evidence = count / (count + odds[map]);
                    through(net, held, evidence, scales.data()[pairs[at].kind], z.data());
                    to.keys.push_back(pairs[at].key + lowest);
                    to.links.insert(to.links.end(), z.begin(), z.begin() + links);
                    at = end;
                }
            }
        });
    }
    std::vector<std::int64_t> offsets(batch + 1, 0), all_keys;
    std::vector<float> all_links;
    for (std::size_t b = 0; b < batch; b++) {
        all_keys.insert(all_keys.end(), found[b].keys.begin(), found[b].keys.end());
        all_links.insert(all_links.end(), found[b].links.begin(), found[b].links.end());
        offsets[b + 1] = static_cast<std::int64_t>(all_keys.size());
    }
    const std::size_t total = all_keys.size();
    return nb::make_tuple(array(std::move(offsets), {batch + 1}), array(std::move(all_keys), {total}),
                          array(std::move(all_links), {total, static_cast<std::size_t>(links)}));
}

}  // namespace

void add_anchored_links(nb::module_& m) {
    m.def("anchored_links", &anchored_links, nb::arg("items").noconvert(), nb::arg("tokens").noconvert(),
          nb::arg("age").noconvert(), nb::arg("lengths").noconvert(), nb::arg("key_offsets").noconvert(),
          nb::arg("keys").noconvert(), nb::arg("shares").noconvert(), nb::arg("features").noconvert(), nb::arg("item_links"),
          nb::arg("item_tokens"), nb::arg("outcomes").noconvert(), nb::arg("prior").noconvert(),
          nb::arg("first"), nb::arg("bias"), nb::arg("second"), nb::arg("scales").noconvert(),
          nb::arg("neighbours"), nb::arg("fading"), nb::arg("counts").noconvert(), nb::arg("ago").noconvert(),
          nb::arg("ages").noconvert(), nb::arg("since").noconvert(), nb::arg("positive"), nb::arg("per_day"), nb::arg("threads"),
          "The anchored links of histories: offsets [B + 1], keys [V] and links [V, r].");
}

}  // namespace limerank
