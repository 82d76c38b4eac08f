// Plain C++, for any processor: vectors of 16 lanes, which compilers cut into what it has (NEON, ...).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "catalogue.hpp"
#include "personal.hpp"

namespace limerank {
namespace {

// A kind of GCC and Clang.
using F = float __attribute__((vector_size(LANES * sizeof(float))));
using I = std::int32_t __attribute__((vector_size(LANES * sizeof(std::int32_t))));
constexpr int TOGETHER = 1;  // blocks that share what is read of the request
constexpr int SUMS = 4, MOST = 1;  // vectors of sums that a product holds, in so many columns

template <class T, class Function>
inline T each(Function function) {
    T out;
    for (int i = 0; i < LANES; i++) out[i] = function(i);
    return out;
}

inline F splat(float x) {
    return each<F>([=](int) { return x; });
}
inline I zero() { return I{}; }
inline I load(const std::uint32_t* from) {
    I out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
inline F load_floats(const float* from) {
    F out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
inline void store(float* to, const F& x) { std::memcpy(to, &x, sizeof x); }
inline void store_integers(std::int32_t* to, const I& x) { std::memcpy(to, &x, sizeof x); }
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
inline I add_bytes(const I& x, const I& y) {
    return each<I>([&](int i) {  // bytes do not carry into the next ones
        const auto a = static_cast<std::uint32_t>(x[i]), b = static_cast<std::uint32_t>(y[i]);
        return static_cast<std::int32_t>(((a & 0x7F7F7F7Fu) + (b & 0x7F7F7F7Fu)) ^ ((a ^ b) & 0x80808080u));
    });
}
inline I flip_signs(const I& x) {
    return each<I>([&](int i) {
        return static_cast<std::int32_t>(static_cast<std::uint32_t>(x[i]) ^ 0x80808080u);
    });
}
inline bool any_bit(const I& x) {
    std::int32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= x[i];
    return bits != 0;
}
inline I scaled(const I& x, int by) { return x * by; }
inline I gather(const std::int8_t* table, const I& dwords) {
    return each<I>([&](int i) {
        std::int32_t four;
        std::memcpy(&four, table + 4 * static_cast<std::ptrdiff_t>(dwords[i]), 4);
        return four;
    });
}
inline void store_dwords(std::uint32_t* to, const I& x) { std::memcpy(to, &x, sizeof x); }
inline I dot(const I& total, const I& items, const I& codes) {
    return each<I>([&](int i) {
        std::int32_t sum = total[i];
        for (int part = 0; part < 4; part++)
            sum += unsigned_part(items[i], part) * signed_part(codes[i], part);
        return sum;
    });
}
inline I add(const I& x, const I& y) { return x + y; }
template <int BITS>
inline I shift_left(const I& x) {
    return each<I>([&](int i) {
        return static_cast<std::int32_t>(static_cast<std::uint32_t>(x[i]) << BITS);
    });
}
template <int BITS>
inline I shift_right(const I& x) {
    return each<I>([&](int i) { return x[i] >> BITS; });
}
inline F to_float(const I& x) { return __builtin_convertvector(x, F); }
inline I truncate(const F& x) { return __builtin_convertvector(x, I); }
inline F fma(const F& x, const F& y, const F& z) {
    return each<F>([&](int i) { return std::fma(x[i], y[i], z[i]); });
}
inline F multiply(const F& x, const F& y) { return x * y; }
inline F subtract(const F& x, const F& y) { return x - y; }
// As the instructions of the other paths: where one is NaN, the second.
inline F minimum(const F& x, const F& y) { return x < y ? x : y; }
inline F maximum(const F& x, const F& y) { return x > y ? x : y; }
inline F absolute(const F& x) {
    return each<F>([&](int i) { return std::fabs(x[i]); });
}
// x y + z, rounded once or twice, as is fastest.
inline F mad(const F& x, const F& y, const F& z) {
#ifdef __FP_FAST_FMAF
    return fma(x, y, z);
#else
    return x * y + z;
#endif
}
inline F plus(const F& x, const F& y) { return x + y; }
inline F divide(const F& x, const F& y) { return x / y; }
inline F root(const F& x) {
    return each<F>([&](int i) { return std::sqrt(x[i]); });
}
inline F as_floats(const I& x) {
    F out;
    std::memcpy(&out, &x, sizeof out);
    return out;
}
inline F reciprocal(const F& x) { return divide(splat(1.0f), x); }
inline F look_up(const float* table, const I& at) {
    return each<F>([&](int i) { return table[at[i]]; });
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
#include "personal.inl"

bool supported() { return true; }

}  // namespace

const Path portable_path = {"portable", supported, pack, score, look_up_links, fold, peak, personalise};

}  // namespace limerank
