// Memory for items laid out for the lanes.
#include <cstdlib>
#include <new>

#include "catalogue.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace limerank {

Blocks::Blocks(const Catalogue& catalogue, std::int64_t items) : stride_(stride(catalogue)) {
    constexpr std::size_t LINE = 64, PAGE = std::size_t{1} << 21;
    const auto blocks = static_cast<std::size_t>((items + LANES - 1) / LANES);
    if (blocks == 0) return;
    const std::size_t bytes = blocks * static_cast<std::size_t>(stride_) * sizeof(std::uint32_t);
    const std::size_t unit = bytes < PAGE ? LINE : PAGE;  // sizes are multiples of the alignment
    const std::size_t taken = (bytes + unit - 1) / unit * unit;
    void* at = std::aligned_alloc(unit, taken);
    if (at == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (unit == PAGE) madvise(at, taken, MADV_HUGEPAGE);  // a wish: it works without
#endif
    dwords_.reset(static_cast<std::uint32_t*>(at));
}

void Blocks::Free::operator()(std::uint32_t* at) const { std::free(at); }

}  // namespace limerank
