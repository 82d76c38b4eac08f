// The inner loops, over the lanes that a path defines before it includes this file: types F (16
// floats) and I (16 integers of 32 bits), and the functions used here.

template <int PART>
inline F term(I codes) {  // the PART-th of the four codes in each lane, as a float
    return to_float(shift_right<24>(shift_left<24 - 8 * PART>(codes)));
}

// Minima and maxima return their second argument if one is NaN, so NaN is passed on.
inline F silu(F x, const SiluTable& table) {
    F size = minimum(absolute(x), splat(SILU_END));
    I at = truncate(minimum(multiply(size, splat(SEGMENTS / SILU_END)), splat(SEGMENTS - 0.5f)));
    F rest = fma(size, fma(size, look_up(table.c2, at), look_up(table.c1, at)), look_up(table.c0, at));
    return subtract(maximum(splat(0.0f), x), rest);
}

template <Activation ACTIVATION>
inline F activate(F x, const SiluTable& table) {
    if constexpr (ACTIVATION == Activation::relu) return maximum(splat(0.0f), x);
    if constexpr (ACTIVATION == Activation::silu) return silu(x, table);
    F share = fma(x, splat(1.0f / 6.0f), splat(0.5f));
    return multiply(x, minimum(maximum(share, splat(0.0f)), splat(1.0f)));
}

// WIDE first-layer sums, from row `j` on, of BLOCKS blocks.
template <int BLOCKS>
inline void sums(const Catalogue& c, const std::uint32_t* first, std::int64_t stride,
                 const Request& request, const std::uint32_t* links, const float* added, int j,
                 F (&out)[BLOCKS][WIDE]) {
    I total[BLOCKS][WIDE];
    const std::int8_t* codes = request.codes + static_cast<std::ptrdiff_t>(j) * c.code_quads() * 4;
    if (links) {
        for (int u = 0; u < WIDE; u++) {
            const I begin = splat_dword(reinterpret_cast<const std::int8_t*>(request.begin + j + u));
            for (int b = 0; b < BLOCKS; b++) total[b][u] = begin;
        }
        const std::int8_t* own = codes + c.quads * WIDE * 4;
        for (int q = 0; q < c.link_quads; q++) {
            I items[BLOCKS];
            for (int b = 0; b < BLOCKS; b++) items[b] = load(links + (b * c.link_quads + q) * LANES);
            for (int u = 0; u < WIDE; u++) {
                const I code = splat_dword(own + (q * WIDE + u) * 4);
                for (int b = 0; b < BLOCKS; b++) total[b][u] = dot(total[b][u], items[b], code);
            }
        }
    } else {
        for (int b = 0; b < BLOCKS; b++)
            for (int u = 0; u < WIDE; u++) total[b][u] = zero();
    }
    for (int q = 0; q < c.quads; q++) {
        I items[BLOCKS];
        for (int b = 0; b < BLOCKS; b++) items[b] = load(first + b * stride + q * LANES);
        for (int u = 0; u < WIDE; u++) {
            const I code = splat_dword(codes + (q * WIDE + u) * 4);
            for (int b = 0; b < BLOCKS; b++) total[b][u] = dot(total[b][u], items[b], code);
        }
    }
    const std::uint32_t* terms = first + (c.row_quads + j / 4) * LANES;
    const float* step = c.term_step.data() + j;
    const float* constant = request.constant + j;
    const float* scale = request.step + j;
    for (int b = 0; b < BLOCKS; b++) {
        const I codes4 = load(terms + b * stride);
        out[b][0] = fma(splat(step[0]), term<0>(codes4), splat(constant[0]));
        out[b][1] = fma(splat(step[1]), term<1>(codes4), splat(constant[1]));
        out[b][2] = fma(splat(step[2]), term<2>(codes4), splat(constant[2]));
        out[b][3] = fma(splat(step[3]), term<3>(codes4), splat(constant[3]));
        for (int u = 0; u < WIDE; u++)
            out[b][u] = fma(splat(scale[u]), to_float(total[b][u]), out[b][u]);
    }
    if (added) {
        for (int b = 0; b < BLOCKS; b++)
            for (int u = 0; u < WIDE; u++)
                out[b][u] = plus(out[b][u],
                                 load_floats(added + static_cast<std::ptrdiff_t>(b * c.padded_sums() + j + u) * LANES));
    }
}

// What the k-th query of a request adds for BLOCKS blocks.
template <int BLOCKS>
inline void alike(const Catalogue& c, const std::uint32_t* first, std::int64_t stride, const Request& request,
                  int k, F (&out)[BLOCKS]) {
    I total[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) total[b] = zero();
    const std::int8_t* codes = request.query + static_cast<std::ptrdiff_t>(k) * c.key_quads * 4;
    for (int q = 0; q < c.key_quads; q++) {
        const I code = splat_dword(codes + q * 4);
        for (int b = 0; b < BLOCKS; b++)
            total[b] = dot(total[b], load(first + b * stride + (c.key_quad + q) * LANES), code);
    }
    for (int b = 0; b < BLOCKS; b++)
        out[b] = fma(splat(request.query_step[k]), to_float(total[b]), splat(request.query_constant[k]));
}

template <Activation ACTIVATION, bool GATED, int BLOCKS>
inline void score_some(const Catalogue& c, const std::uint32_t* first, std::int64_t stride,
                       std::int64_t ahead, const Request& request, const std::uint32_t* links,
                       const float* added, const Head& head, float* out) {
    const SiluTable& table = silu_table();
    const int line = head.outputs * LANES;
    // While these blocks are scored, the memory fetches those that come a tile later.
    const std::uint32_t* next = first + ahead;
    const std::int64_t lines = ahead ? BLOCKS * stride / LANES : 0, steps = c.padded / WIDE;
    const std::int64_t each = (lines + steps - 1) / steps;
    F sum[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) {
        sum[b] = splat(head.bias[0]);
        for (int k = 1; k < head.outputs; k++) store(out + b * line + k * LANES, splat(head.bias[k]));
    }
    for (int j = 0; j < c.padded; j += WIDE) {
        for (std::int64_t i = 0; i < each; i++, next += LANES) __builtin_prefetch(next, 0, 2);
        F a[BLOCKS][WIDE];
        sums<BLOCKS>(c, first, stride, request, links, added, j, a);
        for (int b = 0; b < BLOCKS; b++)
            for (int u = 0; u < WIDE; u++) a[b][u] = activate<ACTIVATION>(a[b][u], table);
        if constexpr (GATED) {
            F gate[BLOCKS][WIDE];
            sums<BLOCKS>(c, first, stride, request, links, added, c.padded + j, gate);
            for (int b = 0; b < BLOCKS; b++)
                for (int u = 0; u < WIDE; u++) a[b][u] = multiply(a[b][u], gate[b][u]);
        }
        for (int u = 0; u < WIDE; u++)
            for (int b = 0; b < BLOCKS; b++) sum[b] = fma(splat(head.weights[j + u]), a[b][u], sum[b]);
        for (int k = 1; k < head.outputs; k++) {
            const float* weights = head.weights + static_cast<std::ptrdiff_t>(k) * c.padded + j;
            for (int b = 0; b < BLOCKS; b++) {
                F other = load_floats(out + b * line + k * LANES);
                for (int u = 0; u < WIDE; u++) other = fma(splat(weights[u]), a[b][u], other);
                store(out + b * line + k * LANES, other);
            }
        }
    }
    for (int k = 0; k < request.queries; k++) {
        F value[BLOCKS];
        alike<BLOCKS>(c, first, stride, request, k, value);
        for (int o = 0; o < head.outputs; o++) {
            const float share = head.mix[o * request.queries + k];
            if (share == 0) continue;
            for (int b = 0; b < BLOCKS; b++) {
                if (o == 0) sum[b] = fma(splat(share), value[b], sum[b]);
                else store(out + b * line + o * LANES, fma(splat(share), value[b], load_floats(out + b * line + o * LANES)));
            }
        }
    }
    for (int b = 0; b < BLOCKS; b++) store(out + b * line, sum[b]);
}

template <Activation ACTIVATION, bool GATED>
void score_blocks(const Catalogue& c, const std::uint32_t* blocks, int count, std::int64_t ahead,
                  const Request& request, const Additions& more, const Head& head, float* out) {
    const std::int64_t stride = Blocks::stride(c), line = head.outputs * LANES;
    const int size = (count + LANES - 1) / LANES;
    const auto links = [&](int b, int some) -> const std::uint32_t* {
        for (int i = b; more.links && i < b + some; i++)
            if (more.touched[i]) return more.links + static_cast<std::ptrdiff_t>(b) * c.link_quads * LANES;
        return nullptr;
    };
    const auto added = [&](int b) {
        return more.sums ? more.sums + static_cast<std::ptrdiff_t>(b) * c.padded_sums() * LANES : nullptr;
    };
    int b = 0;
    for (; b + TOGETHER <= size; b += TOGETHER)
        score_some<ACTIVATION, GATED, TOGETHER>(c, blocks + b * stride, stride, ahead, request,
                                                links(b, TOGETHER), added(b), head, out + b * line);
    for (; b < size; b++)
        score_some<ACTIVATION, GATED, 1>(c, blocks + b * stride, stride, ahead, request, links(b, 1),
                                         added(b), head, out + b * line);
}

void score(const Catalogue& c, const std::uint32_t* blocks, int count, std::int64_t ahead,
           const Request& request, const Additions& more, const Head& head, float* out) {
    const auto run = [&](auto chosen) { chosen(c, blocks, count, ahead, request, more, head, out); };
    const bool gated = c.parts == 2;
    switch (c.activation) {
        case Activation::relu:
            return gated ? run(score_blocks<Activation::relu, true>) : run(score_blocks<Activation::relu, false>);
        case Activation::silu:
            return gated ? run(score_blocks<Activation::silu, true>) : run(score_blocks<Activation::silu, false>);
        case Activation::hardswish:
            return gated ? run(score_blocks<Activation::hardswish, true>) : run(score_blocks<Activation::hardswish, false>);
    }
}

void look_up_links(const Catalogue& c, const std::uint32_t* blocks, int count, const std::int8_t* table,
                   std::uint32_t* links, std::uint8_t* touched) {
    const std::int64_t stride = Blocks::stride(c);
    const int size = (count + LANES - 1) / LANES;
    for (int b = 0; b < size; b++) {
        const std::uint32_t* sets = blocks + b * stride + (c.row_quads + c.parts * c.padded / 4) * LANES;
        bool any = false;
        for (int q = 0; q < c.link_quads; q++) {
            I sum = zero();
            for (int f = 0; f < c.features; f++)
                sum = add_bytes(sum, gather(table + 4 * q, scaled(load(sets + f * LANES), c.link_quads)));
            any = any || any_bit(sum);
            store_dwords(links + (b * c.link_quads + q) * LANES, flip_signs(sum));
        }
        touched[b] = any;
    }
}

inline void fetch(const std::uint8_t* from, std::int64_t size, std::int64_t at, std::int64_t count) {
    for (const std::int64_t end = at + count < size ? at + count : size; at < end; at += 64)
        __builtin_prefetch(from + at, 0, 2);
}

void pack(const Catalogue& c, const std::int64_t* rows, std::int64_t first, int count,
          std::uint32_t* blocks) {
    const std::int64_t stride = Blocks::stride(c);
    const std::uint8_t* weights[LANES];
    const std::uint8_t* terms[LANES];
    const auto* all_terms = reinterpret_cast<const std::uint8_t*>(c.terms);
    const std::int64_t size = c.sums();
    for (int at = 0; at < count; at += LANES) {
        for (int i = 0; i < LANES; i++) {
            // Lanes after the end repeat the last item; their results are not used.
            const int place = at + i < count ? at + i : count - 1;
            const std::int64_t row = rows ? rows[place] : first + place;
            weights[i] = c.weights + row * c.row();
            terms[i] = all_terms + row * size;
        }
        if (!rows) {
            // While a tile is scored, the memory fetches the next one.
            fetch(c.weights, c.items * c.row(), (first + at + TILE) * c.row(), LANES * c.row());
            fetch(all_terms, c.items * size, (first + at + TILE) * size, LANES * size);
        } else {
            for (int i = 0; i < LANES && at + LANES + i < count; i++) {
                const std::int64_t row = rows[at + LANES + i];
                __builtin_prefetch(c.weights + row * c.row());
                __builtin_prefetch(all_terms + row * size);
            }
        }
        std::uint32_t* block = blocks + at / LANES * stride;
        transpose(weights, static_cast<int>(c.row()), block);
        block += c.row_quads * LANES;
        for (int part = 0; part < c.parts; part++) {
            const int quads = transpose(terms, c.hidden, block);
            for (int q = quads; q < c.padded / 4; q++)
                for (int i = 0; i < LANES; i++) block[q * LANES + i] = 0;
            block += c.padded / 4 * LANES;
            for (int i = 0; i < LANES; i++) terms[i] += c.hidden;
        }
        for (int i = 0; c.features > 0 && i < LANES; i++) {
            const int place = at + i < count ? at + i : count - 1;
            const std::int32_t* of = c.sets + (rows ? rows[place] : first + place) * c.features;
            for (int f = 0; f < c.features; f++)
                block[f * LANES + i] = of[f] >= 0 && of[f] < c.set_count ? static_cast<std::uint32_t>(of[f]) : 0;
        }
    }
}

// x [width] times m [width, count].
inline void multiply(const float* x, const float* m, int width, int count, float* to) {
    constexpr int SIDE = 32;
    int j = 0;
    for (; j + SIDE <= count; j += SIDE) {
        float sum[SIDE] = {};
        for (int e = 0; e < width; e++)
            for (int u = 0; u < SIDE; u++)
                sum[u] += x[e] * m[static_cast<std::ptrdiff_t>(e) * count + j + u];
        for (int u = 0; u < SIDE; u++) to[j + u] = sum[u];
    }
    for (; j < count; j++) {
        float sum = 0;
        for (int e = 0; e < width; e++) sum += x[e] * m[static_cast<std::ptrdiff_t>(e) * count + j];
        to[j] = sum;
    }
}

void fold(const Catalogue& c, const Fold& f, const float* links, const float* head,
          const float* link_step, float* scratch, std::int8_t* codes, float* step, float* constant,
          std::int32_t* begin) {
    const int g = f.sums, width = f.width / f.heads;
    float* user = scratch + static_cast<std::ptrdiff_t>(c.columns) * g;
    for (int j = 0; j < g; j++) user[j] = head[j] + f.middle[j];
    for (int h = 0; h < f.heads; h++) {
        float* of_head = scratch + static_cast<std::ptrdiff_t>(h) * f.links * g;
        for (int l = 0; l < f.links; l++) {
            float* to = of_head + static_cast<std::ptrdiff_t>(l) * g;
            const float* link = links + static_cast<std::ptrdiff_t>(l) * f.width + h * width;
            const float* layer = f.from_links_t + static_cast<std::ptrdiff_t>(h) * width * g;
            multiply(link, layer, width, g, to);
        }
        // `step` serves as room for the means until the end.
        for (int j = 0; j < g; j++) step[j] = 0;
        for (int l = 0; l < f.links; l++)
            for (int j = 0; j < g; j++) step[j] += of_head[static_cast<std::ptrdiff_t>(l) * g + j];
        for (int j = 0; j < g; j++) user[j] += step[j] /= static_cast<float>(f.links);
        for (int l = 0; l < f.links; l++) {
            const int column = h * f.links + l;
            float* to = of_head + static_cast<std::ptrdiff_t>(l) * g;
            for (int j = 0; j < g; j++) {
                const float centred = to[j] - step[j];
                user[j] += f.low[column] * centred;
                to[j] = f.weight_step[column] * centred;
            }
        }
    }
    // Behind the weights' rows and the user's, those of anchored links.
    const int rows = c.columns + (link_step ? 1 + c.links : 0);
    for (int k = 0; link_step && k < c.links; k++) {
        float* to = user + static_cast<std::ptrdiff_t>(k + 1) * g;
        for (int j = 0; j < g; j++) to[j] = link_step[k] * f.from_anchors_t[static_cast<std::ptrdiff_t>(k) * g + j];
    }
    float* most = step;
    for (int j = 0; j < g; j++) most[j] = 0;
    for (int k = 0; k < rows; k++) {
        if (k == c.columns) continue;
        const float* from = scratch + static_cast<std::ptrdiff_t>(k) * g;
        for (int j = 0; j < g; j++) {
            const float size = from[j] < 0 ? -from[j] : from[j];
            most[j] = most[j] < size ? size : most[j];
        }
    }
    for (int j = 0; j < g; j++) most[j] = most[j] > 0 ? most[j] / 127 : 1;
    for (int k = 0; k < rows; k++) {
        if (k == c.columns) continue;
        const float mean = k < c.columns ? f.mean[k] : 0;
        float* from = scratch + static_cast<std::ptrdiff_t>(k) * g;
        for (int j = 0; j < g; j++) {
            // To the nearest integer, ties to even, by the rounding of this addition.
            const float code = (from[j] / most[j] + 12582912.0f) - 12582912.0f;
            user[j] += mean * (from[j] - most[j] * code);  // NaN, where links are
            from[j] = code >= -127 && code <= 127 ? code : 0;
        }
    }
    // From here on with padding: halves of `padded`, codes by sums.
    for (int part = c.parts - 1; part >= 0; part--) {
        for (int j = c.padded - 1; j >= 0; j--) {
            const int to = part * c.padded + j, from = part * c.hidden + j;
            std::int8_t* line = codes + (static_cast<std::ptrdiff_t>(to / WIDE) * c.code_quads() * WIDE + to % WIDE) * 4;
            const bool real = j < c.hidden;
            for (int k = 0; k < c.quads * 4; k++) {
                const bool held = real && k < c.columns;
                line[k / 4 * WIDE * 4 + k % 4] =
                    held ? static_cast<std::int8_t>(scratch[static_cast<std::ptrdiff_t>(k) * g + from]) : 0;
            }
            begin[to] = 0;
            for (int k = 0; k < c.link_quads * 4; k++) {
                const bool held = real && link_step && k < c.links;
                const float code = held ? scratch[static_cast<std::ptrdiff_t>(c.columns + 1 + k) * g + from] : 0;
                line[(c.quads + k / 4) * WIDE * 4 + k % 4] = static_cast<std::int8_t>(code);
                begin[to] -= 128 * static_cast<std::int32_t>(code);
            }
            step[to] = real ? step[from] : 0;
            constant[to] = real ? user[from] : 0;
        }
    }
}

double peak(std::int64_t rounds, std::int32_t* sink) {
    alignas(64) std::uint32_t given[LANES];
    for (int i = 0; i < LANES; i++) given[i] = static_cast<std::uint32_t>(sink[i]);
    const I items = load(given);
    I total[WIDE];
    for (int u = 0; u < WIDE; u++) total[u] = zero();
    for (std::int64_t r = 0; r < rounds; r++)
        for (int u = 0; u < WIDE; u++) total[u] = dot(total[u], items, total[u]);
    for (int u = 1; u < WIDE; u++) total[0] = add(total[0], total[u]);
    store_integers(sink, total[0]);
    return static_cast<double>(rounds) * WIDE * LANES * 4;
}
