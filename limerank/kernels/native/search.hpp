// Positions in an ascending array: binary searches that run side by side, so that one waits for memory
// while the others continue, and none depends on branch prediction.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace limerank {

// at[j]: the first position of `keys` whose key is not below wanted[j]; n if there is none.
inline void lower_bounds(const std::int64_t* keys, std::size_t n, const std::int64_t* wanted,
                         std::size_t m, std::int64_t* at) {
    constexpr std::size_t TOGETHER = 16;
    for (std::size_t first = 0; first < m; first += TOGETHER) {
        const std::size_t some = std::min(TOGETHER, m - first);
        std::int64_t sought[TOGETHER] = {};  // always 16: loops of a known length take registers
        std::copy_n(wanted + first, some, sought);
        std::size_t base[TOGETHER] = {};
        for (std::size_t length = n; length > 1;) {
            const std::size_t half = length / 2;
            for (std::size_t j = 0; j < TOGETHER; ++j) {
                const std::size_t below = keys[base[j] + half - 1] < sought[j];
                base[j] += half & (0 - below);
            }
            length -= half;
        }
        for (std::size_t j = 0; j < some; ++j)
            at[first + j] = static_cast<std::int64_t>(base[j] + (n > 0 && keys[base[j]] < sought[j]));
    }
}

// found[j]: the row of the key wanted[j]; -1 where `keys` has none.
inline void rows_of(const std::int64_t* keys, const std::int32_t* rows, std::size_t n,
                    const std::int64_t* wanted, std::size_t m, std::int64_t* found) {
    lower_bounds(keys, n, wanted, m, found);
    for (std::size_t j = 0; j < m; ++j) {
        const auto at = static_cast<std::size_t>(found[j]);
        found[j] = at < n && keys[at] == wanted[j] ? rows[at] : -1;
    }
}

}  // namespace limerank
