// Places in an ascending array: binary searches that run side by side, so that one waits for memory
// while the others go on, and none guesses which way to branch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace limerank {

// at[j]: the first place of `keys` whose key is not below wanted[j]; n where there is none.
inline void lower_bounds(const std::int64_t* keys, std::size_t n, const std::int64_t* wanted,
                         std::size_t m, std::int64_t* at) {
    constexpr std::size_t TOGETHER = 16;
    for (std::size_t first = 0; first < m; first += TOGETHER) {
        const std::size_t some = std::min(TOGETHER, m - first);
        const std::int64_t* base[TOGETHER];
        for (std::size_t j = 0; j < some; ++j) base[j] = keys;
        for (std::size_t length = n; length > 1;) {
            const std::size_t half = length / 2;
            for (std::size_t j = 0; j < some; ++j)
                base[j] = base[j][half - 1] < wanted[first + j] ? base[j] + half : base[j];
            length -= half;
        }
        for (std::size_t j = 0; j < some; ++j)
            at[first + j] = base[j] - keys + (n > 0 && *base[j] < wanted[first + j]);
    }
}

}  // namespace limerank
