// Plain C++, for any processor: loops over 16 lanes, which compilers turn into vectors (NEON, ...).
#include <cmath>
#include <cstring>

#include "catalogue.hpp"

namespace limerank {
namespace {

struct F {
    float lane[LANES];
};
struct I {
    std::int32_t lane[LANES];
};
constexpr int TOGETHER = 1;  // blocks that share what is read of the request

template <class T, class Function>
inline T each(Function function) {
    T out;
    for (int i = 0; i < LANES; i++) out.lane[i] = function(i);
    return out;
}

inline F splat(float x) {
    return each<F>([=](int) { return x; });
}
inline I zero() {
    return each<I>([](int) { return 0; });
}
inline I load(const std::uint32_t* from) {
    I out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
}
inline F load_floats(const float* from) {
    F out;
    std::memcpy(out.lane, from, sizeof out.lane);
    return out;
}
inline void store(float* to, const F& x) { std::memcpy(to, x.lane, sizeof x.lane); }
inline void store_integers(std::int32_t* to, const I& x) { std::memcpy(to, x.lane, sizeof x.lane); }
inline I splat_dword(const std::int8_t* from) {
    std::int32_t four;
    std::memcpy(&four, from, 4);
    return each<I>([=](int) { return four; });
}
inline std::int32_t unsigned_part(std::int32_t x, int part) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(x) >> (8 * part) & 0xFFu);
}
inline std::int32_t signed_part(std::int32_t x, int part) {
    return static_cast<std::int8_t>(static_cast<std::uint32_t>(x) >> (8 * part) & 0xFFu);
}
inline I dot(const I& total, const I& items, const I& codes) {
    return each<I>([&](int i) {
        std::int32_t sum = total.lane[i];
        for (int part = 0; part < 4; part++)
            sum += unsigned_part(items.lane[i], part) * signed_part(codes.lane[i], part);
        return sum;
    });
}
inline I add(const I& x, const I& y) {
    return each<I>([&](int i) { return x.lane[i] + y.lane[i]; });
}
template <int BITS>
inline I shift_left(const I& x) {
    return each<I>([&](int i) {
        return static_cast<std::int32_t>(static_cast<std::uint32_t>(x.lane[i]) << BITS);
    });
}
template <int BITS>
inline I shift_right(const I& x) {
    return each<I>([&](int i) { return x.lane[i] >> BITS; });
}
inline F to_float(const I& x) {
    return each<F>([&](int i) { return static_cast<float>(x.lane[i]); });
}
inline I truncate(const F& x) {
    return each<I>([&](int i) { return static_cast<std::int32_t>(x.lane[i]); });
}
inline F fma(const F& x, const F& y, const F& z) {
    return each<F>([&](int i) { return std::fma(x.lane[i], y.lane[i], z.lane[i]); });
}
inline F multiply(const F& x, const F& y) {
    return each<F>([&](int i) { return x.lane[i] * y.lane[i]; });
}
inline F subtract(const F& x, const F& y) {
    return each<F>([&](int i) { return x.lane[i] - y.lane[i]; });
}
// As the instructions of the other paths: where one is NaN, the second.
inline F minimum(const F& x, const F& y) {
    return each<F>([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; });
}
inline F maximum(const F& x, const F& y) {
    return each<F>([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; });
}
inline F absolute(const F& x) {
    return each<F>([&](int i) { return std::fabs(x.lane[i]); });
}
inline F look_up(const float* table, const I& at) {
    return each<F>([&](int i) { return table[at.lane[i]]; });
}

inline int transpose(const std::uint8_t* const* rows, int bytes, std::uint32_t* to) {
    const int quads = (bytes + 3) / 4;
    for (int i = 0; i < LANES; i++) {
        for (int q = 0; q < quads; q++) {
            std::uint32_t four = 0;  // the first byte in the lowest bits, whatever the byte order
            for (int part = 0; part < 4 && 4 * q + part < bytes; part++)
                four |= static_cast<std::uint32_t>(rows[i][4 * q + part]) << (8 * part);
            to[q * LANES + i] = four;
        }
    }
    return quads;
}

#include "loops.inl"

bool supported() { return true; }

}  // namespace

const Path portable_path = {"portable", supported, pack, score, fold, peak};

}  // namespace limerank
