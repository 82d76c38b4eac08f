// Anchored links of shared candidates: limerank/kernels/shared.py in single precision. A link is
// added to each candidate that has its key, and the gradients go the way back; nothing is stored for
// a pair of a link and a candidate.
#include "python.hpp"

namespace limerank {
namespace {

// The links of one request. Link v belongs to the entries low[v] .. high[v] - 1 of all items' keys;
// `candidates` has the candidate of each entry; a number that no candidate has, such as -1, is none.
struct Matches {
    const std::int64_t *low, *high;
    std::size_t count;
    const std::int32_t* candidates;
    const float* shares;
    std::size_t width;
    std::uint32_t sums;
};

// `fixed` is the width where the compiler is to know it, else 0.
template <std::size_t fixed>
inline __attribute__((always_inline)) void give(const Matches& m, const float* links, float* sums) {
    const std::size_t width = fixed ? fixed : m.width;
    for (std::size_t v = 0; v < m.count; v++) {
        const float* __restrict link = links + v * width;
        for (std::int64_t t = m.low[v]; t < m.high[v]; t++) {
            const auto candidate = static_cast<std::uint32_t>(m.candidates[t]);
            if (candidate >= m.sums) continue;
            float* __restrict sum = sums + std::size_t{candidate} * width;
            const float share = m.shares[t];
            for (std::size_t i = 0; i < width; i++) sum[i] += share * link[i];
        }
    }
}

template <std::size_t fixed>
inline __attribute__((always_inline)) void take(const Matches& m, const float* of_sums, float* of_links) {
    const std::size_t width = fixed ? fixed : m.width;
    for (std::size_t v = 0; v < m.count; v++) {
        float* __restrict link = of_links + v * width;
        for (std::size_t i = 0; i < width; i++) link[i] = 0;
        for (std::int64_t t = m.low[v]; t < m.high[v]; t++) {
            const auto candidate = static_cast<std::uint32_t>(m.candidates[t]);
            if (candidate >= m.sums) continue;
            const float* __restrict sum = of_sums + std::size_t{candidate} * width;
            const float share = m.shares[t];
            for (std::size_t i = 0; i < width; i++) link[i] += share * sum[i];
        }
    }
}

FASTEST void give_any(const Matches& m, const float* links, float* sums) {
    m.width == 8 ? give<8>(m, links, sums) : give<0>(m, links, sums);
}

FASTEST void take_any(const Matches& m, const float* of_sums, float* of_links) {
    m.width == 8 ? take<8>(m, of_sums, of_links) : take<0>(m, of_sums, of_links);
}

using Written = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Matches checked(In<std::int64_t, 1> low, In<std::int64_t, 1> high, In<std::int32_t, 1> candidates,
                In<float, 1> shares, std::size_t links, std::size_t width, std::size_t sums,
                std::size_t sum_width) {
    expect(low.shape(0) == links && high.shape(0) == links, "expected a range for each link");
    expect(candidates.shape(0) == shares.shape(0), "expected a share for each candidate");
    expect(width == sum_width, "links and sums have other widths");
    expect(sums < (std::size_t{1} << 31), "expected fewer candidates than 2^31");
    const auto entries = static_cast<std::int64_t>(candidates.shape(0));
    for (std::size_t v = 0; v < links; v++)
        expect(low.data()[v] >= 0 && low.data()[v] <= high.data()[v] && high.data()[v] <= entries,
               "a link's range is outside the keys");
    return {low.data(), high.data(), links, candidates.data(), shares.data(), width,
            static_cast<std::uint32_t>(sums)};
}

}  // namespace

void add_matches(nb::module_& m) {
    m.def(
        "give_links",
        [](In<std::int64_t, 1> low, In<std::int64_t, 1> high, In<std::int32_t, 1> candidates,
           In<float, 1> shares, In<float, 2> links, Written sums) {
            const Matches of = checked(low, high, candidates, shares, links.shape(0), links.shape(1),
                                       sums.shape(0), sums.shape(1));
            give_any(of, links.data(), sums.data());
        },
        nb::arg("low").noconvert(), nb::arg("high").noconvert(), nb::arg("candidates").noconvert(),
        nb::arg("shares").noconvert(), nb::arg("links").noconvert(), nb::arg("sums").noconvert(),
        "Add the links of a request, times the shares, to the sums of the candidates with their keys.");
    m.def(
        "take_links",
        [](In<std::int64_t, 1> low, In<std::int64_t, 1> high, In<std::int32_t, 1> candidates,
           In<float, 1> shares, In<float, 2> of_sums, Written of_links) {
            const Matches of = checked(low, high, candidates, shares, of_links.shape(0),
                                       of_links.shape(1), of_sums.shape(0), of_sums.shape(1));
            take_any(of, of_sums.data(), of_links.data());
        },
        nb::arg("low").noconvert(), nb::arg("high").noconvert(), nb::arg("candidates").noconvert(),
        nb::arg("shares").noconvert(), nb::arg("of_sums").noconvert(),
        nb::arg("of_links").noconvert(), "The gradients of the links from those of the sums.");
}

}  // namespace limerank
