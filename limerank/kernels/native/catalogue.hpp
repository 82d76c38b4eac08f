// The types of the scorer: quantised items, quantised requests, and the paths.
//
// Arithmetic, for one request with folded links F [C, g] and user terms U [g] (limerank/ranking/scorer):
//
//     F0  = F - mean of F over the links of each head
//     M   = weight_step * F0
//     s   = max over C of |M| / 127
//     Q   = round(M / s)
//     c   = U + sum over heads of the means + weight_low F0 + term_middle + weight_mean (M - s Q)
//     a_i = s * (codes_i Q) + (term_step * term_codes_i + c)        codes_i Q in integers
//     z_i = f(a_i), or f(a'_i) * a''_i with a gate;  logits_i = A z_i + b
//
// Every path does the same operations on each item in the same order: integer sums are exact, and
// each float operation rounds once (fma, conversion, minimum, ...), so that all paths give the same
// bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace limerank {

constexpr int LANES = 16;         // items of a block: one per vector lane
constexpr int WIDE = 4;           // first-layer sums computed together; layouts are padded to it
constexpr int TILE = 16 * LANES;  // items that are scored at once: they stay in the first cache

enum class Activation { relu, silu, hardswish };

// SiLU(x) = max(x, 0) - r(|x|), r(t) = t / (1 + exp(t)), by a quadratic on each of SEGMENTS pieces
// of [0, SILU_END]; beyond, r counts as r(SILU_END). The error stays below SILU_ERROR.
constexpr int SEGMENTS = 32;
constexpr float SILU_END = 12.0f;
constexpr double SILU_ERROR = 1.5e-4;

struct SiluTable {
    alignas(64) float c0[SEGMENTS], c1[SEGMENTS], c2[SEGMENTS];
};
const SiluTable& silu_table();

// The items and what all requests have in common. Sums of the first layer are padded: `parts`
// halves (two with a gate) of `hidden` each, `padded` of them a half.
struct Catalogue {
    const std::uint8_t* weights = nullptr;  // [items, columns]
    const std::int8_t* terms = nullptr;     // [items, parts * hidden]
    std::int64_t items = 0;
    int columns = 0;
    int quads = 0;  // columns / 4, rounded up: codes are multiplied by fours
    int hidden = 0;
    int padded = 0;  // hidden, rounded up to a multiple of WIDE
    int parts = 1;
    Activation activation = Activation::silu;
    std::vector<float> term_step;  // [parts * padded]

    int sums() const { return parts * hidden; }
    int padded_sums() const { return parts * padded; }
};

// One request, quantised.
struct Request {
    const std::int8_t* codes;  // [padded sums / WIDE, quads, WIDE, 4]
    const float* step;         // [padded sums]
    const float* constant;     // [padded sums]
};

// A linear layer from z to some outputs.
struct Head {
    const float* weights;  // [outputs, padded]
    const float* bias;     // [outputs]
    int outputs;
};

// Memory for items laid out for the lanes: block after block, of each
//     weights [quads][LANES] dwords of four codes, terms [parts][padded / 4][LANES] dwords.
class Blocks {
  public:
    Blocks(const Catalogue& catalogue, std::int64_t items);
    static std::int64_t stride(const Catalogue& c) {  // dwords of a block
        return static_cast<std::int64_t>(c.quads + c.parts * c.padded / 4) * LANES;
    }
    std::uint32_t* data() { return dwords_.get(); }  // aligned to 64 bytes
    // The block that begins with this item, whose number is a multiple of LANES.
    std::uint32_t* of(std::int64_t item) { return data() + item / LANES * stride_; }

  private:
    struct Free {
        void operator()(std::uint32_t* at) const;
    };
    std::int64_t stride_;
    std::unique_ptr<std::uint32_t[], Free> dwords_;
};

// The parts that a request is folded from: links [l, d], their head's terms [g] and the layer between.
struct Fold {
    int heads, links, width, sums;  // width d; columns = heads * links
    const float* from_links_t;      // [d, sums]: the layer's weights, transposed
    const float* low;               // weight_low [columns]
    const float* weight_step;       // [columns]
    const float* mean;              // weight_mean [columns]
    const float* middle;            // term_middle [sums]
};

struct Weights;  // of the user stage: see personal.hpp
struct History;

// One implementation of the inner loops.
struct Path {
    const char* name;
    bool (*supported)();
    // Lay out `count` items, rows[0 .. count) or, without rows, first ... first + count - 1.
    void (*pack)(const Catalogue&, const std::int64_t* rows, std::int64_t first, int count,
                 std::uint32_t* blocks);
    // Outputs [blocks][outputs][LANES] of `count` items; those behind the last are undefined.
    // Prefetches the memory `ahead` dwords further; 0: none.
    void (*score)(const Catalogue&, const std::uint32_t* blocks, int count, std::int64_t ahead,
                  const Request&, const Head&, float* out);
    // Quantise one request; `scratch` has (columns + 1) * sums floats.
    void (*fold)(const Catalogue&, const Fold&, const float* links, const float* head,
                 float* scratch, std::int8_t* codes, float* step, float* constant);
    // Do `rounds` times 64 products of vectors in registers; returns multiply-adds done.
    double (*peak)(std::int64_t rounds, std::int32_t* sink);
    // The personalised links of a request, [l, d]; `room` has `personal_room` floats.
    void (*personalise)(const Weights&, const History&, float* room, float* out);
};

extern const Path avx512_path, avx2_path, portable_path;

}  // namespace limerank
