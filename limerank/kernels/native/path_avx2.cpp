// AVX2 with FMA: a block is two registers of 8 items. Bytes are widened to 16 bits before they are
// multiplied, for the instruction that multiplies bytes saturates.
#include "catalogue.hpp"
#include "personal.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace limerank {
namespace {

struct F {
    __m256 low, high;
};
struct I {
    __m256i low, high;
};
constexpr int TOGETHER = 1;  // blocks that share what is read of the request
constexpr int SUMS = 6, MOST = 1;  // vectors of sums that a product holds, in so many columns

inline F splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline I zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline __m256i load8(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline I load(const std::uint32_t* from) { return {load8(from), load8(from + 8)}; }
inline F load_floats(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
inline void store(float* to, F x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
inline void store_integers(std::int32_t* to, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), x.high);
}
inline I splat_dword(const std::int8_t* from) {
    std::int32_t four;
    std::memcpy(&four, from, 4);
    const __m256i all = _mm256_set1_epi32(four);
    return {all, all};
}
inline I add_bytes(I x, I y) {
    return {_mm256_add_epi8(x.low, y.low), _mm256_add_epi8(x.high, y.high)};
}
inline I flip_signs(I x) {
    const __m256i signs = _mm256_set1_epi32(static_cast<int>(0x80808080u));
    return {_mm256_xor_si256(x.low, signs), _mm256_xor_si256(x.high, signs)};
}
inline bool any_bit(I x) {
    const __m256i both = _mm256_or_si256(x.low, x.high);
    return _mm256_testz_si256(both, both) == 0;
}
inline I scaled(I x, int by) {
    const __m256i all = _mm256_set1_epi32(by);
    return {_mm256_mullo_epi32(x.low, all), _mm256_mullo_epi32(x.high, all)};
}
inline I gather(const std::int8_t* table, I dwords) {
    const int* from = reinterpret_cast<const int*>(table);
    return {_mm256_i32gather_epi32(from, dwords.low, 4), _mm256_i32gather_epi32(from, dwords.high, 4)};
}
inline void store_dwords(std::uint32_t* to, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), x.high);
}
inline __m256i dot8(__m256i total, __m256i items, __m256i codes) {
    const __m256i even = _mm256_and_si256(items, _mm256_set1_epi16(0xFF));
    const __m256i odd = _mm256_srli_epi16(items, 8);
    const __m256i of_even = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
    const __m256i of_odd = _mm256_srai_epi16(codes, 8);
    const __m256i sum =
        _mm256_add_epi32(_mm256_madd_epi16(even, of_even), _mm256_madd_epi16(odd, of_odd));
    return _mm256_add_epi32(total, sum);
}
inline I dot(I total, I items, I codes) {
    return {dot8(total.low, items.low, codes.low), dot8(total.high, items.high, codes.high)};
}
inline I add(I x, I y) {
    return {_mm256_add_epi32(x.low, y.low), _mm256_add_epi32(x.high, y.high)};
}
template <int BITS>
inline I shift_left(I x) {
    return {_mm256_slli_epi32(x.low, BITS), _mm256_slli_epi32(x.high, BITS)};
}
template <int BITS>
inline I shift_right(I x) {
    return {_mm256_srai_epi32(x.low, BITS), _mm256_srai_epi32(x.high, BITS)};
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline I truncate(F x) { return {_mm256_cvttps_epi32(x.low), _mm256_cvttps_epi32(x.high)}; }
inline F fma(F x, F y, F z) {
    return {_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
}
inline F multiply(F x, F y) {
    return {_mm256_mul_ps(x.low, y.low), _mm256_mul_ps(x.high, y.high)};
}
inline F subtract(F x, F y) {
    return {_mm256_sub_ps(x.low, y.low), _mm256_sub_ps(x.high, y.high)};
}
inline F minimum(F x, F y) {
    return {_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high)};
}
inline F maximum(F x, F y) {
    return {_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high)};
}
inline F absolute(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline F mad(F x, F y, F z) { return fma(x, y, z); }
inline F plus(F x, F y) { return {_mm256_add_ps(x.low, y.low), _mm256_add_ps(x.high, y.high)}; }
inline F divide(F x, F y) { return {_mm256_div_ps(x.low, y.low), _mm256_div_ps(x.high, y.high)}; }
inline F root(F x) { return {_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)}; }
inline F as_floats(I x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
inline F reciprocal(F x) { return divide(splat(1.0f), x); }
inline F look_up(const float* table, I at) {
    return {_mm256_i32gather_ps(table, at.low, 4), _mm256_i32gather_ps(table, at.high, 4)};
}

inline int transpose(const std::uint8_t* const* rows, int bytes, std::uint32_t* to) {
    const int whole = bytes / 4, quads = (bytes + 3) / 4;
    for (int i = 0; i < LANES; i++) {
        for (int q = 0; q < whole; q++) std::memcpy(to + q * LANES + i, rows[i] + 4 * q, 4);
        if (whole < quads) {
            std::uint32_t last = 0;
            std::memcpy(&last, rows[i] + 4 * whole, static_cast<std::size_t>(bytes - 4 * whole));
            to[whole * LANES + i] = last;
        }
    }
    return quads;
}

#include "loops.inl"
#include "personal.inl"

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Path avx2_path = {"avx2", supported, pack, score, look_up_links, fold, peak, personalise};

}  // namespace limerank
#endif
