// The profiles of histories: limerank/models/profile.py without gradients. The mix of the means is
// linear, so that an event has one weight for each logit, and no mean of keys is computed.
#include <cmath>
#include <vector>

#include "python.hpp"

namespace limerank {
namespace {

// One history: the sums of its events' outcomes by fading, and of its items' vectors by logit.
struct Sums {
    const std::int64_t *items, *tokens;
    std::size_t count, each;
    const float* vectors;
    std::size_t width;
    const float* table;  // [tokens, outcomes + outputs * fades]: of a logit, the mix of the gates
    std::size_t outcomes, outputs, fades;
    const float* shares;  // [count, fades]
    float *row, *inputs, *means;
};

FASTEST void read(const Sums& s) {
    const std::size_t outcomes = s.outcomes, fades = s.fades, width = s.width, each = s.each;
    const std::size_t line = outcomes + s.outputs * fades;
    float *__restrict row = s.row, *__restrict inputs = s.inputs, *__restrict means = s.means;
    for (std::size_t j = 0; j < s.count; j++) {
        const std::int64_t* token = s.tokens + j * each;
        for (std::size_t i = 0; i < line; i++) row[i] = 0;
        for (std::size_t a = 0; a < each; a++) {
            const float* __restrict from = s.table + static_cast<std::size_t>(token[a]) * line;
            for (std::size_t i = 0; i < line; i++) row[i] += from[i];
        }
        const float* __restrict share = s.shares + j * fades;
        for (std::size_t f = 0; f < fades; f++) {
            if (share[f] == 0) continue;
            const float own = share[f];
            float* __restrict to = inputs + f * outcomes;
            for (std::size_t i = 0; i < outcomes; i++) to[i] += own * row[i];
        }
        const float* __restrict vector = s.vectors + static_cast<std::size_t>(s.items[j]) * width;
        for (std::size_t k = 0; k < s.outputs; k++) {
            float weight = 0;
            for (std::size_t f = 0; f < fades; f++) weight += share[f] * row[outcomes + k * fades + f];
            float* __restrict mean = means + k * width;
            for (std::size_t i = 0; i < width; i++) mean[i] += weight * vector[i];
        }
    }
}

float product(const float* one, const float* other, std::size_t count) {
    float sum = 0;
    for (std::size_t i = 0; i < count; i++) sum += one[i] * other[i];
    return sum;
}

nb::tuple profiles(In<std::int64_t, 2> items, In<std::int64_t, 3> tokens, In<std::int64_t, 1> lengths,
                   In<float, 2> vectors, In<float, 2> table, In<float, 2> key, In<float, 2> mix,
                   In<float, 2> first, In<float, 1> bias, In<float, 2> second, In<float, 1> prior,
                   In<float, 1> fadings, In<float, 1> knots, int threads) {
    const std::size_t batch = items.shape(0), longest = items.shape(1), each = tokens.shape(2);
    const std::size_t width = vectors.shape(1), size = key.shape(0), outputs = mix.shape(0);
    const std::size_t fades = fadings.size(), hidden = bias.size(), added = second.shape(0);
    expect(tokens.shape(0) == batch && tokens.shape(1) == longest && lengths.shape(0) == batch,
           "the parts of the histories do not fit together");
    expect(fades && knots.size() && mix.shape(1) % fades == 0 && table.shape(1) >= mix.shape(1) / fades &&
               key.shape(1) == width && second.shape(1) == hidden && first.shape(0) == hidden && prior.shape(0) == 2,
           "the layers of the profile do not fit together");
    const std::size_t gates = mix.shape(1) / fades, outcomes = table.shape(1) - gates;
    expect(first.shape(1) == fades * outcomes + knots.size(), "the layers of the profile do not fit together");
    bool fine = true;
    for (std::size_t b = 0; b < batch; b++) {
        const std::int64_t length = lengths.data()[b];
        expect(length >= 0 && length <= static_cast<std::int64_t>(longest), "a history is longer than its batch");
        const std::size_t begin = b * longest, end = begin + static_cast<std::size_t>(length);
        for (std::size_t at = begin; at < end; at++)
            fine = fine && items.data()[at] >= 0 && items.data()[at] < static_cast<std::int64_t>(vectors.shape(0));
        for (std::size_t at = begin * each; at < end * each; at++)
            fine = fine && tokens.data()[at] >= 0 && tokens.data()[at] < static_cast<std::int64_t>(table.shape(0));
        expect(fine, "an item of a history has no vector, or an event's token is unknown");
    }

    std::vector<float> sums(batch * added, 0.0f), queries(batch * outputs * size, 0.0f);
    {
        nb::gil_scoped_release free;
        // Of each token: its outcomes, and what its gates give each logit and fading.
        const std::size_t line = outcomes + outputs * fades;
        std::vector<float> mixed(table.shape(0) * line);
        for (std::size_t t = 0; t < table.shape(0); t++) {
            const float* from = table.data() + t * table.shape(1);
            std::copy_n(from, outcomes, mixed.data() + t * line);
            for (std::size_t kf = 0; kf < outputs * fades; kf++)
                mixed[t * line + outcomes + kf] = product(mix.data() + kf * gates, from + outcomes, gates);
        }
        // Weights of events by how many followed, of each fading; and sums of them.
        std::vector<float> weights(longest * fades, 1.0f);
        std::vector<double> totals((longest + 1) * fades, 0.0);
        for (std::size_t n = 0; n < longest; n++)
            for (std::size_t f = 0; f < fades; f++) {
                if (n) weights[n * fades + f] = faded(weights[(n - 1) * fades + f], fadings.data()[f]);
                totals[(n + 1) * fades + f] = totals[n * fades + f] + static_cast<double>(weights[n * fades + f]);
            }
        in_threads(static_cast<std::int64_t>(batch), 1, 8, threads, [&](int, std::int64_t low, std::int64_t high) {
            std::vector<float> row(line), inputs(first.shape(1)), shares(longest * fades), units(hidden);
            std::vector<float> mean(outputs * width);
            for (auto b = static_cast<std::size_t>(low); b < static_cast<std::size_t>(high); b++) {
                const auto n = static_cast<std::size_t>(lengths.data()[b]);
                const auto count = static_cast<float>(n);
                std::fill(inputs.begin(), inputs.end(), 0.0f);
                std::fill(mean.begin(), mean.end(), 0.0f);
                for (std::size_t j = 0; j < n; j++)
                    for (std::size_t f = 0; f < fades; f++)
                        shares[j * fades + f] = weights[(n - 1 - j) * fades + f] / static_cast<float>(totals[n * fades + f]);
                read({items.data() + b * longest, tokens.data() + b * longest * each, n, each, vectors.data(), width,
                      mixed.data(), outcomes, outputs, fades, shares.data(), row.data(), inputs.data(), mean.data()});
                // The network of the outcomes' means and the number of events.
                const float of_outcomes = count / (count + std::exp(prior.data()[0]));
                const float of_keys = count / (count + std::exp(prior.data()[1]));
                for (std::size_t i = 0; i < fades * outcomes; i++) inputs[i] *= of_outcomes;
                float* scale = inputs.data() + fades * outcomes;
                const float* at = knots.data();
                const std::size_t last = knots.size() - 1;
                const float x = std::min(std::max(std::log2(1 + count), at[0]), at[last]);
                std::size_t below = 0;
                while (below + 1 < last && at[below + 1] <= x) below++;
                const float part = last ? (x - at[below]) / (at[below + 1] - at[below]) : 0;
                scale[below] = 1 - part;
                if (last) scale[below + 1] = part;
                for (std::size_t h = 0; h < hidden; h++) {
                    const float sum = bias.data()[h] + product(first.data() + h * inputs.size(), inputs.data(), inputs.size());
                    units[h] = sum / (1 + std::exp(-sum));
                }
                for (std::size_t g = 0; g < added; g++)
                    sums[b * added + g] = product(second.data() + g * hidden, units.data(), hidden);
                for (std::size_t k = 0; k < outputs; k++)
                    for (std::size_t s = 0; s < size; s++)
                        queries[(b * outputs + k) * size + s] =
                            of_keys * product(key.data() + s * width, mean.data() + k * width, width);
            }
        });
    }
    return nb::make_tuple(array(std::move(sums), {batch, added}), array(std::move(queries), {batch, outputs, size}));
}

}  // namespace

void add_profiles(nb::module_& m) {
    m.def("profiles", &profiles, nb::arg("items").noconvert(), nb::arg("tokens").noconvert(),
          nb::arg("lengths").noconvert(), nb::arg("vectors").noconvert(), nb::arg("table").noconvert(),
          nb::arg("key").noconvert(), nb::arg("mix").noconvert(), nb::arg("first").noconvert(),
          nb::arg("bias").noconvert(), nb::arg("second").noconvert(), nb::arg("prior").noconvert(),
          nb::arg("fadings").noconvert(), nb::arg("knots").noconvert(), nb::arg("threads"),
          "What the profiles of histories add to first-layer sums, [B, g], and their queries, [B, K, S].");
}

}  // namespace limerank
