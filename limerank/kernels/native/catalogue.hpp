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
// Anchored links are r more columns: the sum of the codes of an item's sets of anchored values and its
// own, -127 .. 127, 128 added, times rows of Q that hold step * A_z; -128 times their sums begins each
// total. What an item has no anchored link of is then exactly 0, computed or not.
//
// With profiles, an item's row of weights ends in its key: `keys` more codes, whose product with the
// codes of a request's query, one query for each logit, is added to that logit:
// logits_ik += step_k (key_i Q_k) + constant_k.
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
    const std::uint8_t* weights = nullptr;  // [items, columns + keys]
    const std::int8_t* terms = nullptr;     // [items, parts * hidden]
    const std::int32_t* sets = nullptr;     // [items, features]: of anchored values
    int features = 0;                       // that are anchored
    std::int32_t set_count = 0;             // what `sets` are below; others count as 0, the empty one
    int links = 0, link_quads = 0;          // numbers of an anchored link, and by fours
    std::int64_t items = 0;
    int columns = 0;
    int quads = 0;  // columns / 4, rounded up: codes are multiplied by fours
    int keys = 0;   // numbers of an item's key
    int key_quad = 0, key_quads = 0;  // the quad in which keys begin, and how many they lie in
    int row_quads = 0;                // of columns and keys
    int hidden = 0;
    int padded = 0;  // hidden, rounded up to a multiple of WIDE
    int parts = 1;
    Activation activation = Activation::silu;
    std::vector<float> term_step;  // [parts * padded]

    int sums() const { return parts * hidden; }
    int padded_sums() const { return parts * padded; }
    int code_quads() const { return quads + link_quads; }
    std::int64_t row() const { return columns + keys; }
};

// One request, quantised.
struct Request {
    const std::int8_t* codes;   // [padded sums / WIDE, code quads, WIDE, 4]
    const float* step;          // [padded sums]
    const float* constant;      // [padded sums]
    const std::int32_t* begin;  // [padded sums]: of a total with anchored links
    const std::int8_t* query = nullptr;     // [queries, key quads, 4]
    const float* query_step = nullptr;      // [queries]
    const float* query_constant = nullptr;  // [queries]
    int queries = 0;
};

// What some items have beyond the catalogue, for one request.
struct Additions {
    const std::uint32_t* links = nullptr;   // [blocks][link_quads][LANES] codes, 128 added; or none
    const std::uint8_t* touched = nullptr;  // [blocks]: where a code is not 0
    const float* sums = nullptr;            // [blocks][padded sums][LANES], added to the sums; or none
};

// A linear layer from z to some outputs.
struct Head {
    const float* weights;  // [outputs, padded]
    const float* bias;     // [outputs]
    int outputs;
    const float* mix = nullptr;  // [outputs, queries]: the factor of each query in each output
};

// Memory for items laid out for the lanes: block after block, of each
//     weights and keys [row quads][LANES] dwords of four codes, terms [parts][padded / 4][LANES] dwords,
//     sets [features][LANES].
class Blocks {
  public:
    Blocks(const Catalogue& catalogue, std::int64_t items);
    static std::int64_t stride(const Catalogue& c) {  // dwords of a block
        return static_cast<std::int64_t>(c.row_quads + c.parts * c.padded / 4 + c.features) * LANES;
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
    const float* from_anchors_t;    // [links, sums]: the layer of anchored links, transposed
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
                  const Request&, const Additions&, const Head&, float* out);
    // Codes of the anchored links of `count` items, from a table [sets][4 link_quads].
    void (*look_up_links)(const Catalogue&, const std::uint32_t* blocks, int count,
                          const std::int8_t* table, std::uint32_t* links, std::uint8_t* touched);
    // Quantise one request, with the steps of its anchored links [links], if it has any; `scratch` has
    // (columns + 1 + links) * sums floats.
    void (*fold)(const Catalogue&, const Fold&, const float* links, const float* head,
                 const float* link_step, float* scratch, std::int8_t* codes, float* step,
                 float* constant, std::int32_t* begin);
    // Do `rounds` times 64 products of vectors in registers; returns multiply-adds done.
    double (*peak)(std::int64_t rounds, std::int32_t* sink);
    // The personalised links of a request, [l, d]; `room` has `personal_room` floats.
    void (*personalise)(const Weights&, const History&, float* room, float* out);
};

extern const Path avx512_path, avx2_path, portable_path;

}  // namespace limerank
