// AVX-512 with VNNI: 16 items a register, four products a lane and instruction.
#include "catalogue.hpp"
#include "personal.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace limerank {
namespace {

using F = __m512;
using I = __m512i;
constexpr int TOGETHER = 4;  // blocks that share what is read of the request
constexpr int SUMS = 16, MOST = 4;  // vectors of sums that a product holds, in so many columns

inline F splat(float x) { return _mm512_set1_ps(x); }
inline I zero() { return _mm512_setzero_si512(); }
inline I load(const std::uint32_t* from) { return _mm512_load_si512(from); }
inline F load_floats(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, F x) { _mm512_storeu_ps(to, x); }
inline void store_integers(std::int32_t* to, I x) { _mm512_storeu_si512(to, x); }
inline I splat_dword(const std::int8_t* from) {
    std::int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}
inline I add_bytes(I x, I y) { return _mm512_add_epi8(x, y); }
inline I flip_signs(I x) { return _mm512_xor_si512(x, _mm512_set1_epi32(static_cast<int>(0x80808080u))); }
inline bool any_bit(I x) { return _mm512_test_epi32_mask(x, x) != 0; }
inline I scaled(I x, int by) { return _mm512_mullo_epi32(x, _mm512_set1_epi32(by)); }
inline I gather(const std::int8_t* table, I dwords) { return _mm512_i32gather_epi32(dwords, table, 4); }
inline void store_dwords(std::uint32_t* to, I x) { _mm512_storeu_si512(to, x); }
inline I dot(I total, I items, I codes) { return _mm512_dpbusd_epi32(total, items, codes); }
inline I add(I x, I y) { return _mm512_add_epi32(x, y); }
template <int BITS>
inline I shift_left(I x) {
    return _mm512_slli_epi32(x, BITS);
}
template <int BITS>
inline I shift_right(I x) {
    return _mm512_srai_epi32(x, BITS);
}
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }
inline I truncate(F x) { return _mm512_cvttps_epi32(x); }
inline F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
inline F multiply(F x, F y) { return _mm512_mul_ps(x, y); }
inline F subtract(F x, F y) { return _mm512_sub_ps(x, y); }
inline F minimum(F x, F y) { return _mm512_min_ps(x, y); }
inline F maximum(F x, F y) { return _mm512_max_ps(x, y); }
inline F absolute(F x) { return _mm512_abs_ps(x); }
inline F mad(F x, F y, F z) { return fma(x, y, z); }
inline F plus(F x, F y) { return _mm512_add_ps(x, y); }
inline F divide(F x, F y) { return _mm512_div_ps(x, y); }
inline F root(F x) { return _mm512_sqrt_ps(x); }
inline F as_floats(I x) { return _mm512_castsi512_ps(x); }
inline F reciprocal(F x) {  // a step of Newton's from 14 bits: within two units of the last place
    const F near = _mm512_rcp14_ps(x);
    return _mm512_fmadd_ps(near, _mm512_fnmadd_ps(x, near, _mm512_set1_ps(1.0f)), near);
}
inline F look_up(const float* table, I at) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), at, _mm512_load_ps(table + 16));
}

// Bytes of 16 rows -> dwords [bytes / 4][16]; returns how many dwords a row has.
inline int transpose(const std::uint8_t* const* rows, int bytes, std::uint32_t* to) {
    const int quads = (bytes + 3) / 4;
    for (int at = 0; at < bytes; at += 32) {
        const int held = bytes - at < 32 ? bytes - at : 32;
        const __mmask32 mask = held == 32 ? ~0u : (1u << held) - 1;
        I r[8];
        for (int i = 0; i < 8; i++) {
            const int row = i < 4 ? i : i + 4;  // rows i and i + 4 share a register
            const __m256i low = _mm256_maskz_loadu_epi8(mask, rows[row] + at);
            const __m256i high = _mm256_maskz_loadu_epi8(mask, rows[row + 4] + at);
            r[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        I fours[2][4];  // of the first and the last eight rows: dwords 0 and 4, 1 and 5, ...
        for (int half = 0; half < 2; half++) {
            const I* s = r + 4 * half;
            const I low01 = _mm512_unpacklo_epi32(s[0], s[1]);
            const I high01 = _mm512_unpackhi_epi32(s[0], s[1]);
            const I low23 = _mm512_unpacklo_epi32(s[2], s[3]);
            const I high23 = _mm512_unpackhi_epi32(s[2], s[3]);
            fours[half][0] = _mm512_unpacklo_epi64(low01, low23);
            fours[half][1] = _mm512_unpackhi_epi64(low01, low23);
            fours[half][2] = _mm512_unpacklo_epi64(high01, high23);
            fours[half][3] = _mm512_unpackhi_epi64(high01, high23);
        }
        std::uint32_t* line = to + at / 4 * LANES;
        const int dwords = (held + 3) / 4;
        for (int q = 0; q < 4; q++) {
            if (q < dwords)
                _mm512_store_si512(line + q * LANES,
                                   _mm512_shuffle_i32x4(fours[0][q], fours[1][q], 0x88));
            if (q + 4 < dwords)
                _mm512_store_si512(line + (q + 4) * LANES,
                                   _mm512_shuffle_i32x4(fours[0][q], fours[1][q], 0xDD));
        }
    }
    return quads;
}

#include "loops.inl"
#include "personal.inl"

// Eight codes, the usual number, are gathered at once.
void look_up_eight(const Catalogue& c, const std::uint32_t* blocks, int count, const std::int8_t* table,
                   std::uint32_t* links, std::uint8_t* touched) {
    if (c.link_quads != 2) return look_up_links(c, blocks, count, table, links, touched);
    const std::int64_t stride = Blocks::stride(c);
    const int size = (count + LANES - 1) / LANES;
    const I first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const I second = add(first, _mm512_set1_epi32(1));
    for (int b = 0; b < size; b++) {
        const std::uint32_t* sets = blocks + b * stride + (c.row_quads + c.parts * c.padded / 4) * LANES;
        I low = zero(), high = zero();
        for (int f = 0; f < c.features; f++) {
            const I at = load(sets + f * LANES);
            const __m256i of_low = _mm512_castsi512_si256(at), of_high = _mm512_extracti64x4_epi64(at, 1);
            low = add_bytes(low, _mm512_i32gather_epi64(of_low, table, 8));
            high = add_bytes(high, _mm512_i32gather_epi64(of_high, table, 8));
        }
        touched[b] = any_bit(_mm512_or_si512(low, high));
        store_dwords(links + 2 * b * LANES, flip_signs(_mm512_permutex2var_epi32(low, first, high)));
        store_dwords(links + (2 * b + 1) * LANES, flip_signs(_mm512_permutex2var_epi32(low, second, high)));
    }
}

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Path avx512_path = {"avx512-vnni", supported, pack, score, look_up_eight, fold, peak, personalise};

}  // namespace limerank
#endif
