// The user stage over the lanes of a path: see personal.hpp. Beside what loops.inl uses, a path
// defines mad (x y + z), plus, divide, reciprocal, root, as_floats, and how many vectors of sums its registers
// hold: SUMS, in up to MOST columns.

// Part of a matrix product, ROWS x COLUMNS vectors of it: sums over `depth` of an element of the
// left, at left + row * down + i * along, times a line of the right.
template <int ROWS, int COLUMNS>
inline void product_part(const float* left, std::ptrdiff_t down, std::ptrdiff_t along, int depth,
                         const float* right, std::ptrdiff_t line, F (&sum)[ROWS][COLUMNS]) {
    for (int i = 0; i < depth; i++, left += along, right += line) {
        F x[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) x[c] = load_floats(right + c * LANES);
        for (int r = 0; r < ROWS; r++) {
            const F w = splat(left[r * down]);
            for (int c = 0; c < COLUMNS; c++) sum[r][c] = mad(w, x[c], sum[r][c]);
        }
    }
}

struct Left {  // the left of a product: where it is, from row to row, and along a row
    const float* at;
    std::ptrdiff_t down, along;
};
struct Right {
    const float* at;
    std::ptrdiff_t line;
};
enum class To { fresh, more };  // what a product does with what is there: writes over it, adds

template <To TO, int ROWS, int COLUMNS>
inline void product_rows(const Left& w, const float* bias, int& row, int rows, int depth,
                         const float* right, std::ptrdiff_t line, float* out, std::ptrdiff_t out_line) {
    for (; row + ROWS <= rows; row += ROWS) {
        F sum[ROWS][COLUMNS];
        float* to = out + row * out_line;
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < COLUMNS; c++) {
                sum[r][c] = splat(bias ? bias[row + r] : 0.0f);
                if (TO == To::more) sum[r][c] = plus(sum[r][c], load_floats(to + r * out_line + c * LANES));
            }
        product_part<ROWS, COLUMNS>(w.at + row * w.down, w.down, w.along, depth, right, line, sum);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < COLUMNS; c++) store(to + r * out_line + c * LANES, sum[r][c]);
    }
}

template <To TO, int COLUMNS>
inline void product_columns(const Left& w, const float* bias, int rows, int depth, const float* right,
                            std::ptrdiff_t line, float* out, std::ptrdiff_t out_line) {
    int row = 0;
    product_rows<TO, SUMS / COLUMNS, COLUMNS>(w, bias, row, rows, depth, right, line, out, out_line);
    if constexpr (SUMS / COLUMNS > 4)
        product_rows<TO, 4, COLUMNS>(w, bias, row, rows, depth, right, line, out, out_line);
    product_rows<TO, 1, COLUMNS>(w, bias, row, rows, depth, right, line, out, out_line);
}

// out [rows, columns] = w [rows, depth] x [depth, columns], plus a bias for each row if there is
// one, plus the former content of `out` if asked. Columns are padded to full vectors.
template <To TO = To::fresh>
void product(const Left& w, const float* bias, int rows, int depth, const Right& x, int columns,
             float* out, std::ptrdiff_t out_line) {
    int column = 0;
    for (; column + MOST * LANES <= columns; column += MOST * LANES)
        product_columns<TO, MOST>(w, bias, rows, depth, x.at + column, x.line, out + column, out_line);
    if constexpr (MOST > 2)
        for (; column + 2 * LANES <= columns; column += 2 * LANES)
            product_columns<TO, 2>(w, bias, rows, depth, x.at + column, x.line, out + column, out_line);
    for (; column < columns; column += LANES)
        product_columns<TO, 1>(w, bias, rows, depth, x.at + column, x.line, out + column, out_line);
}

// e^x by a power of two and a polynomial, to some 1e-7 of it; x is taken to [-87, 80].
inline F exponential(F x) {
    x = minimum(maximum(x, splat(-87.0f)), splat(80.0f));
    const F power = subtract(to_float(truncate(mad(x, splat(1.44269504f), splat(128.5f)))), splat(128.0f));
    const F rest = mad(power, splat(2.12194440e-4f), mad(power, splat(-0.693359375f), x));
    F sum = splat(1.9875691500e-4f);
    for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = mad(sum, rest, splat(factor));
    sum = mad(sum, multiply(rest, rest), plus(rest, splat(1.0f)));
    const F two_to = as_floats(shift_left<23>(truncate(plus(power, splat(127.0f)))));
    return multiply(sum, two_to);
}

inline F sigmoid(F x) { return reciprocal(plus(splat(1.0f), exponential(subtract(splat(0.0f), x)))); }
inline F exact_silu(F x) { return multiply(x, sigmoid(x)); }

void activate(float* x, int rows, int columns, std::ptrdiff_t line) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c += LANES)
            store(x + r * line + c, exact_silu(load_floats(x + r * line + c)));
}

void scale(float* x, int rows, int columns, std::ptrdiff_t line, float factor) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c += LANES)
            store(x + r * line + c, multiply(load_floats(x + r * line + c), splat(factor)));
}

// Layer norm of each column, times a gate if there is one.
void normalise(const float* x, const Norm& norm, int width, int columns, std::ptrdiff_t line, float* out,
               const float* gate = nullptr) {
    const float share = 1.0f / static_cast<float>(width);
    for (int c = 0; c < columns; c += LANES) {
        F sum = splat(0.0f), squares = splat(0.0f);
        for (int i = 0; i < width; i++) sum = plus(sum, load_floats(x + i * line + c));
        const F mean = multiply(sum, splat(share));
        for (int i = 0; i < width; i++) {
            const F off = subtract(load_floats(x + i * line + c), mean);
            squares = mad(off, off, squares);
        }
        const F factor = divide(splat(1.0f), root(mad(squares, splat(share), splat(NORM_EPS))));
        for (int i = 0; i < width; i++) {
            const F off = multiply(subtract(load_floats(x + i * line + c), mean), factor);
            F value = mad(off, splat(norm.weight[i]), splat(norm.bias[i]));
            if (gate) value = multiply(value, load_floats(gate + i * line + c));
            store(out + i * line + c, value);
        }
    }
}

// x += update * n / (n + k), with each link's k.
void add_evidence(float* x, const float* update, int width, int links, int padded, const float* log_prior,
          std::int64_t count) {
    if (count == 0) return;
    const float of_events = std::log(static_cast<float>(count));
    for (int c = 0; c < padded; c += LANES) {
        alignas(64) float prior[LANES] = {};
        for (int j = 0; j < LANES && c + j < links; j++) prior[j] = log_prior[c + j];
        const F evidence = sigmoid(subtract(splat(of_events), load_floats(prior)));
        for (int i = 0; i < width; i++) {
            float* at = x + i * padded + c;
            store(at, mad(load_floats(update + i * padded + c), evidence, load_floats(at)));
        }
    }
}

inline Left layer(const Linear& of, int inputs) { return {of.weight, inputs, 1}; }

struct Personal {
    const Weights& w;
    const History& history;
    int d, l, e;         // l: links, padded to whole vectors
    float *links;        // [d, l]
    float *normal, *wide, *more, *read;  // [d, l], [2 d, l], [2 d, l], [d, l]
    float *folded, *total, *share, *key_bias;  // [d, l], and [l] each
    float *user;         // [2 d, LANES]
    float *events_normal, *events_uq, *events_kv, *events_read;  // [d | 2 d | 2 d | d, EVENTS]
    float *of_events;    // logits of links for events, [EVENTS, l]
    float *of_links;     // and of events for links, [l, EVENTS]
    float *tiles;        // events as blocks have left them, [tiles, d, EVENTS]

    Personal(const Weights& weights, const History& of, float* room)
        : w(weights), history(of), d(weights.width),
          l((weights.links + LANES - 1) / LANES * LANES), e(weights.width / weights.heads) {
        const auto take = [&](std::ptrdiff_t rows, std::ptrdiff_t columns) {
            float* taken = room;
            room += rows * columns;
            return taken;
        };
        links = take(d, l), normal = take(d, l), wide = take(2 * d, l), more = take(2 * d, l);
        read = take(d, l), folded = take(2 * d, l), total = take(1, l), share = take(1, l);
        key_bias = take(1, l), user = take(2 * d, LANES);
        events_normal = take(d, EVENTS), events_uq = take(2 * d, EVENTS);
        events_kv = take(2 * d, EVENTS), events_read = take(d, EVENTS);
        of_events = take(EVENTS, l), of_links = take(l, EVENTS);
        tiles = room;
    }

    int held(std::int64_t first) const {  // events of the tile that begins there
        return static_cast<int>(std::min<std::int64_t>(EVENTS, history.count - first));
    }

    float* tile(std::int64_t first) const { return tiles + first * d; }

    // LC = L + MLP([L ; u]).
    void contextualise() {
        for (int i = 0; i < d; i++)
            for (int j = 0; j < l; j++)
                links[i * l + j] = j < w.links ? w.raw[static_cast<std::ptrdiff_t>(j) * d + i] : 0.0f;
        for (int i = 0; i < d; i++) store(wide + i * LANES, splat(history.user[i]));
        const Left of_link = layer(w.context_in, 2 * d);
        const Left of_user = {of_link.at + d, of_link.down, 1};
        product(of_user, w.context_in.bias, 2 * d, d, {wide, LANES}, LANES, user, LANES);
        float* bias = more;
        for (int i = 0; i < 2 * d; i++) bias[i] = user[i * LANES];
        product(of_link, bias, 2 * d, d, {links, l}, l, wide, l);
        activate(wide, 2 * d, l, l);
        product<To::more>(layer(w.context_out, 2 * d), w.context_out.bias, d, 2 * d, {wide, l}, l, links, l);
    }

    // Events, a line for each of their numbers.
    void lay_out() {
        for (std::int64_t first = 0; first < history.count; first += EVENTS) {
            const int count = held(first);
            float* to = tile(first);
            const float* from = history.events + first * d;
            for (int i = 0; i < d; i++) {
                for (int n = 0; n < count; n++) to[i * EVENTS + n] = from[static_cast<std::ptrdiff_t>(n) * d + i];
                for (int n = count; n < EVENTS; n++) to[i * EVENTS + n] = 0.0f;
            }
        }
    }

    void pass(const Block& block) {
        normalise(links, block.norm, d, l, l, normal);
        product(layer(block.uq, d), block.uq.bias, 2 * d, d, {normal, l}, l, wide, l);
        product(layer(block.kv, d), block.kv.bias, 2 * d, d, {normal, l}, l, more, l);
        activate(wide, 2 * d, l, l);
        activate(more, 2 * d, l, l);
        const float sharpness = 1.0f / std::sqrt(static_cast<float>(e));
        float *u = wide, *q = wide + d * l, *k = more, *v = more + d * l;
        scale(q, d, l, l, sharpness);
        scale(k, d, l, l, sharpness);
        scale(v, d, l, l, 1.0f / static_cast<float>(w.links));
        std::memset(read, 0, sizeof(float) * static_cast<std::size_t>(d * l));
        for (std::int64_t first = 0; first < history.count; first += EVENTS) {
            const int count = held(first), columns = (count + LANES - 1) / LANES * LANES;
            float* x = tile(first);
            normalise(x, block.norm, d, columns, EVENTS, events_normal);
            const Right normal_events = {events_normal, EVENTS};
            product(layer(block.uq, d), block.uq.bias, 2 * d, d, normal_events, columns, events_uq, EVENTS);
            product(layer(block.kv, d), block.kv.bias, 2 * d, d, normal_events, columns, events_kv, EVENTS);
            activate(events_uq, 2 * d, columns, EVENTS);
            activate(events_kv, 2 * d, columns, EVENTS);
            const float *u_events = events_uq, *q_events = events_uq + d * EVENTS;
            const float *k_events = events_kv, *v_events = events_kv + d * EVENTS;
            for (int h = 0; h < w.heads; h++) {
                const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(h) * e * l;
                const std::ptrdiff_t events_at = static_cast<std::ptrdiff_t>(h) * e * EVENTS;
                product({k_events + events_at, 1, EVENTS}, nullptr, count, e, {q + at, l}, l, of_events, l);
                activate(of_events, count, l, l);
                product<To::more>({v_events + events_at, EVENTS, 1}, nullptr, e, count, {of_events, l}, l,
                                  read + at, l);
                product({k + at, 1, l}, nullptr, w.links, e, {q_events + events_at, EVENTS}, columns,
                        of_links, EVENTS);
                activate(of_links, w.links, columns, EVENTS);
                product({v + at, l, 1}, nullptr, e, w.links, {of_links, EVENTS}, columns,
                        events_read + events_at, EVENTS);
            }
            normalise(events_read, block.norm_read, d, columns, EVENTS, events_normal, u_events);
            product<To::more>(layer(block.out, d), block.out.bias, d, d, normal_events, columns, x, EVENTS);
        }
        scale(read, d, l, l, 1.0f / static_cast<float>(std::max<std::int64_t>(history.count, 1)));
        normalise(read, block.norm_read, d, l, l, normal, u);
        product(layer(block.out, d), block.out.bias, d, d, {normal, l}, l, read, l);
        add_evidence(links, read, d, w.links, l, block.log_prior, history.count);
    }

    // The last reading of the links. Keys and values of events are not computed: queries go through
    // the layer of the keys instead, and the sums of events through the layer of the values.
    void read_events() {
        float least = history.count ? history.age[0] : 0.0f;
        for (std::int64_t n = 1; n < history.count; n++) least = std::min(least, history.age[n]);
        float* query = wide;  // [d, l]
        product(layer(w.query, d), w.query.bias, d, d, {links, l}, l, query, l);
        scale(query, d, l, l, 1.0f / std::sqrt(static_cast<float>(e)));
        for (int h = 0; h < w.heads; h++) {
            const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(h) * e;
            const float* key = w.key_value.weight + at * d;
            const float* value = key + static_cast<std::ptrdiff_t>(d) * d;
            const Right query_h = {query + at * l, l};
            product({key, 1, d}, nullptr, d, e, query_h, l, folded, l);
            product({w.key_value.bias + at, 0, 1}, nullptr, 1, e, query_h, l, key_bias, l);
            float* seen = folded + d * l;  // sum of weights times events, [d, l]
            std::memset(seen, 0, sizeof(float) * static_cast<std::size_t>(d * l));
            std::memset(total, 0, sizeof(float) * static_cast<std::size_t>(l));
            std::memset(share, 0, sizeof(float) * static_cast<std::size_t>(l));
            float* rate = more;  // [l]
            for (int c = 0; c < l; c += LANES) {
                alignas(64) float log_rate[LANES] = {};
                for (int j = 0; j < LANES && c + j < w.links; j++)
                    log_rate[j] = w.log_rate[static_cast<std::ptrdiff_t>(h) * w.links + c + j];
                store(rate + c, exponential(load_floats(log_rate)));
            }
            for (std::int64_t first = 0; first < history.count; first += EVENTS) {
                const int count = held(first);
                // As they came, a line an event; from blocks, a line a number.
                const bool raw = w.blocks.empty();
                const float* x = raw ? history.events + first * d : tile(first);
                const Left by_event = {x, raw ? d : 1, raw ? 1 : EVENTS};
                const Left by_number = {x, by_event.along, by_event.down};
                product(by_event, nullptr, count, d, {folded, l}, l, of_events, l);
                weigh(history.age + first, count, least, rate);
                product<To::more>(by_number, nullptr, d, count, {of_events, l}, l, seen, l);
            }
            for (int c = 0; c < l; c += LANES) {
                const F part = divide(splat(1.0f), maximum(load_floats(share + c), splat(1e-30f)));
                store(total + c, multiply(load_floats(total + c), part));
                for (int i = 0; i < d; i++)
                    store(seen + i * l + c, multiply(load_floats(seen + i * l + c), part));
            }
            product({value, d, 1}, nullptr, e, d, {seen, l}, l, read + at * l, l);
            product<To::more>({w.key_value.bias + d + at, 1, 0}, nullptr, e, 1, {total, l}, l, read + at * l, l);
        }
    }

    // Logits of events, in place, become SiLU(logit) exp(-rate * age); both are summed up.
    void weigh(const float* age, int count, float least, const float* rate) {
        for (int c = 0; c < l; c += LANES) {
            const F of_key = load_floats(key_bias + c), falls = load_floats(rate + c);
            F all = load_floats(total + c), shares = load_floats(share + c);
            for (int n = 0; n < count; n++) {
                float* at = of_events + static_cast<std::ptrdiff_t>(n) * l + c;
                // Negligible shares become 0: arithmetic with subnormal numbers is slow.
                const F old = multiply(falls, splat(least - age[n]));
                const F part = maximum(splat(0.0f), subtract(exponential(old), splat(1e-30f)));
                const F weight = multiply(exact_silu(plus(load_floats(at), of_key)), part);
                shares = plus(shares, part);
                all = plus(all, weight);
                store(at, weight);
            }
            store(total + c, all);
            store(share + c, shares);
        }
    }

    // Add to the links what they read; then the feed-forward layer and the last norm.
    void absorb(float* out) {
        const float floor = std::exp(2 * *w.log_floor), part = 1.0f / static_cast<float>(d);
        for (int c = 0; c < l; c += LANES) {
            F squares = splat(0.0f);
            for (int i = 0; i < d; i++) {
                const F x = load_floats(read + i * l + c);
                squares = mad(x, x, squares);
            }
            const F factor = divide(splat(1.0f), root(mad(squares, splat(part), splat(floor))));
            for (int i = 0; i < d; i++)
                store(read + i * l + c, multiply(load_floats(read + i * l + c), factor));
        }
        product(layer(w.out, d), w.out.bias, d, d, {read, l}, l, normal, l);
        add_evidence(links, normal, d, w.links, l, w.log_prior, history.count);
        normalise(links, w.feed_norm, d, l, l, normal);
        product(layer(w.up, d), w.up.bias, 2 * d, d, {normal, l}, l, wide, l);
        activate(wide, 2 * d, l, l);
        product<To::more>(layer(w.down, 2 * d), w.down.bias, d, 2 * d, {wide, l}, l, links, l);
        normalise(links, w.last, d, l, l, normal);
        for (int j = 0; j < w.links; j++)
            for (int i = 0; i < d; i++) out[static_cast<std::ptrdiff_t>(j) * d + i] = normal[i * l + j];
    }
};

void personalise(const Weights& weights, const History& history, float* room, float* out) {
    Personal of(weights, history, room);
    of.contextualise();
    if (!weights.blocks.empty()) of.lay_out();
    for (const Block& block : weights.blocks) of.pass(block);
    of.read_events();
    of.absorb(out);
}
