// The links of a user, contextualised and personalised: LIME's user stage for one request, in the
// fewest passes over the history. See limerank/models/lime.py for the equations.
//
// A vector has 16 links or 16 events, one in each lane, and a matrix has a line for each number of a
// link or event: norms and activations work on full vectors, and weights, which are used one at a
// time, are read from the memory of the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace limerank {

constexpr int EVENTS = 64;  // that pass through a block together: they stay in the first caches
constexpr float NORM_EPS = 1e-5f;  // torch.nn.LayerNorm's

struct Linear {  // [out, in] and [out]
    const float *weight, *bias;
};
struct Norm {
    const float *weight, *bias;
};

// A block in which links read events and events read links. Width d, l links.
struct Block {
    Norm norm, norm_read;
    Linear uq, kv, out;        // [2 d, d] both: U above Q, K above V; [d, d]
    const float* log_prior;    // [l]
};

// A model's weights.
struct Weights {
    int heads = 0, links = 0, width = 0;
    const float* raw = nullptr;  // the links, [l, d]
    Linear context_in, context_out;  // [2 d, 2 d]: of a link, then of the user; [d, 2 d]
    std::vector<Block> blocks;
    Linear query, key_value, out;  // of the reading: [d, d], [2 d, d], [d, d]
    const float *log_floor = nullptr, *log_prior = nullptr, *log_rate = nullptr;  // [], [l], [H, l]
    Norm feed_norm;
    Linear up, down;  // [2 d, d], [d, 2 d]
    Norm last;
};

// A request: user [d], events [n, d] and their ages [n].
struct History {
    const float *user, *events, *age;
    std::int64_t count;
};

// How many floats `Path::personalise` works in.
std::size_t personal_room(const Weights& weights, std::int64_t events);

}  // namespace limerank
