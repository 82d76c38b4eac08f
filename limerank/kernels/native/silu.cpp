// The table of the SiLU approximation, made once: interpolation at Chebyshev points.
#include <cmath>

#include "catalogue.hpp"

namespace limerank {

namespace {

double rest(double t) { return t / (1.0 + std::exp(t)); }

SiluTable make() {
    SiluTable table;
    const double width = static_cast<double>(SILU_END) / SEGMENTS;
    const double at = std::sqrt(3.0) / 2;  // Chebyshev points of three: -at, 0, at
    for (int i = 0; i < SEGMENTS; i++) {
        const double middle = (i + 0.5) * width, x = at * width / 2;
        const double y0 = rest(middle - x), y1 = rest(middle), y2 = rest(middle + x);
        const double b = (y2 - y0) / (2 * x), a = (y2 - 2 * y1 + y0) / (2 * x * x);
        table.c2[i] = static_cast<float>(a);
        table.c1[i] = static_cast<float>(b - 2 * a * middle);
        table.c0[i] = static_cast<float>(y1 - b * middle + a * middle * middle);
    }
    return table;
}

}  // namespace

const SiluTable& silu_table() {
    static const SiluTable table = make();
    return table;
}

}  // namespace limerank
