// Anchored links in integer arithmetic (limerank/ranking/scorer/quantised.py): each set of anchored
// values, and each item, that a request's history touches gets r codes. An item's codes are the sum of
// those of its sets and its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "python.hpp"
#include "search.hpp"

namespace limerank {

constexpr int MOST_FEATURES = 100;  // that are anchored: more would leave too few codes for each
constexpr std::size_t LENT_BYTES = std::size_t{256} << 20;  // of tables that wait for the next request

// Tables of zeros, [sets] lines of codes, that requests borrow and return as they were: a request costs
// what its history touches, not what the catalogue has.
class Tables {
  public:
    Tables(std::size_t sets, std::size_t line) : line_(line), size_(sets * line) {}
    std::unique_ptr<std::int8_t[]> take() {
        const std::lock_guard<std::mutex> one(lock_);
        if (free_.empty()) return std::unique_ptr<std::int8_t[]>(new std::int8_t[size_]());
        std::unique_ptr<std::int8_t[]> table = std::move(free_.back());
        free_.pop_back();
        return table;
    }
    void give(std::unique_ptr<std::int8_t[]> table, const std::vector<std::int32_t>& touched) {
        const std::lock_guard<std::mutex> one(lock_);
        if ((free_.size() + 1) * size_ > LENT_BYTES) return;
        for (const std::int32_t set : touched)
            std::memset(table.get() + static_cast<std::size_t>(set) * line_, 0, line_);
        free_.push_back(std::move(table));
    }

  private:
    std::mutex lock_;
    std::vector<std::unique_ptr<std::int8_t[]>> free_;
    std::size_t line_, size_;
};

// The anchored links of one request, quantised.
struct Linked {
    Linked() = default;
    Linked(Linked&&) = default;
    Linked& operator=(Linked&&) = delete;
    ~Linked() {
        if (table) tables->give(std::move(table), sets);
    }
    std::shared_ptr<Tables> tables;
    std::unique_ptr<std::int8_t[]> table;  // [sets][line]; none where no set is touched
    std::vector<std::int32_t> sets;        // that are touched
    std::vector<std::int64_t> rows;        // items that are touched, ascending
    std::vector<std::int8_t> codes;        // theirs, [rows][line]
    std::vector<float> step;               // of the codes, [links]; none where nothing is touched
    bool any() const { return !step.empty(); }
};

// The anchored values of an index, and the layer that anchored links go through.
class Anchors {
  public:
    Anchors(In<std::int32_t, 2> codes, In<std::int64_t, 1> keys, In<std::int32_t, 1> sets,
            In<float, 1> shares, In<std::int32_t, 1> kinds, std::int64_t item_tokens,
            In<float, 2> layer)
        : codes_(codes), keys_(keys), sets_(sets), shares_(shares), kinds_(kinds),
          item_tokens_(item_tokens), features_(static_cast<int>(codes.shape(1))),
          links_(static_cast<int>(layer.shape(1))), sums_(static_cast<int>(layer.shape(0))) {
        expect(codes.shape(1) <= MOST_FEATURES, "expected at most 100 anchored features");
        expect(links_ >= 1 && links_ <= 1 << 12, "expected 1 to 4096 numbers of an anchored link");
        expect(keys.shape(0) == sets.shape(0) && keys.shape(0) == shares.shape(0),
               "keys, sets and shares of anchored values differ in number");
        expect(kinds.shape(0) >= 1, "the empty set is missing");
        for (std::size_t i = 0; i < keys.shape(0); i++)
            expect(sets.data()[i] > 0 && static_cast<std::size_t>(sets.data()[i]) < kinds.shape(0) &&
                       (i == 0 || keys.data()[i - 1] <= keys.data()[i]),
                   "keys of anchored values must ascend, and their sets exist");
        for (std::size_t i = 0; i < kinds.shape(0); i++)
            expect(kinds.data()[i] >= 0 && (kinds.data()[i] < features_ || i == 0),
                   "a set is of no anchored feature");
        layer_t_.resize(layer.size());
        for (int j = 0; j < sums_; j++)
            for (int r = 0; r < links_; r++)
                layer_t_[static_cast<std::size_t>(r * sums_ + j)] = layer.data()[j * links_ + r];
        tables_ = std::make_shared<Tables>(kinds.shape(0), static_cast<std::size_t>(line()));
    }

    const std::int32_t* codes() const { return codes_.data(); }
    std::size_t items() const { return codes_.shape(0); }
    int features() const { return features_; }
    int links() const { return links_; }
    int sums() const { return sums_; }
    std::int32_t sets() const { return static_cast<std::int32_t>(kinds_.shape(0)); }
    int quads() const { return (links_ + 3) / 4; }
    int line() const { return 4 * quads(); }
    const float* layer_t() const { return layer_t_.data(); }

    // The anchored links of a request: keys [count], ascending, and links [count, r].
    Linked quantised(const std::int64_t* keys, const float* links, std::size_t count) const {
        Linked made;
        const auto r = static_cast<std::size_t>(links_);
        const std::size_t kinds = static_cast<std::size_t>(features_) + 1;
        const std::size_t values =
            static_cast<std::size_t>(std::lower_bound(keys, keys + count, item_tokens_) - keys);
        std::vector<float> sums;           // of the touched sets, [sets, r]
        std::vector<std::int32_t> slots;   // of a set among these: in the table, until the codes are
        if (values > 0 && keys_.size() > 0) {
            std::vector<std::int64_t> first(values);
            lower_bounds(keys_.data(), keys_.size(), keys, values, first.data());
            std::unique_ptr<std::int8_t[]> table = tables_->take();
            for (std::size_t v = 0; v < values; v++) {
                for (auto at = static_cast<std::size_t>(first[v]);
                     at < keys_.size() && keys_.data()[at] == keys[v]; at++) {
                    const std::int32_t set = sets_.data()[at];
                    std::int8_t* place = table.get() + static_cast<std::size_t>(set) * static_cast<std::size_t>(line());
                    std::int32_t slot;
                    std::memcpy(&slot, place, 4);
                    if (slot == 0) {
                        made.sets.push_back(set);
                        slot = static_cast<std::int32_t>(made.sets.size());
                        std::memcpy(place, &slot, 4);
                        sums.resize(sums.size() + r, 0.0f);
                    }
                    float* to = sums.data() + static_cast<std::size_t>(slot - 1) * r;
                    for (std::size_t j = 0; j < r; j++) to[j] += shares_.data()[at] * links[v * r + j];
                }
            }
            if (made.sets.empty()) tables_->give(std::move(table), made.sets);
            else {
                made.table = std::move(table);
                made.tables = tables_;
            }
        }
        const auto items = static_cast<std::int64_t>(codes_.shape(0));
        std::size_t end = values;
        while (end < count && keys[end] - item_tokens_ < items) made.rows.push_back(keys[end++] - item_tokens_);
        // The largest of each kind, then the step that lets the sum of one of each fit.
        std::vector<float> most(kinds * r, 0.0f);
        for (std::size_t s = 0; s < made.sets.size(); s++) {
            float* of = most.data() + static_cast<std::size_t>(kinds_.data()[made.sets[s]]) * r;
            for (std::size_t j = 0; j < r; j++) of[j] = std::max(of[j], std::fabs(sums[s * r + j]));
        }
        for (std::size_t v = values; v < end; v++) {
            float* of = most.data() + (kinds - 1) * r;
            for (std::size_t j = 0; j < r; j++) of[j] = std::max(of[j], std::fabs(links[v * r + j]));
        }
        if (made.sets.empty() && made.rows.empty()) return made;
        made.step.assign(r, 0.0f);
        for (std::size_t k = 0; k < kinds; k++)
            for (std::size_t j = 0; j < r; j++) made.step[j] += most[k * r + j];
        const float levels = 127.0f - 0.5f * static_cast<float>(kinds);
        for (std::size_t j = 0; j < r; j++) made.step[j] /= levels;
        for (std::size_t s = 0; s < made.sets.size(); s++)
            coded(sums.data() + s * r, made.step.data(),
                  made.table.get() + static_cast<std::size_t>(made.sets[s]) * static_cast<std::size_t>(line()));
        made.codes.resize(made.rows.size() * static_cast<std::size_t>(line()));
        for (std::size_t i = 0; i < made.rows.size(); i++)
            coded(links + (values + i) * r, made.step.data(),
                  made.codes.data() + i * static_cast<std::size_t>(line()));
        return made;
    }

  private:
    void coded(const float* z, const float* step, std::int8_t* to) const {
        std::memset(to, 0, static_cast<std::size_t>(line()));
        for (int j = 0; j < links_; j++) {
            const float code = step[j] > 0 ? std::nearbyint(z[j] / step[j]) : 0.0f;
            to[j] = std::fabs(code) <= 127 ? static_cast<std::int8_t>(code) : std::int8_t{0};  // 0: NaN
        }
    }

    In<std::int32_t, 2> codes_;
    In<std::int64_t, 1> keys_;
    In<std::int32_t, 1> sets_;
    In<float, 1> shares_;
    In<std::int32_t, 1> kinds_;
    std::int64_t item_tokens_;
    int features_, links_, sums_;
    std::vector<float> layer_t_;  // [r, sums]
    std::shared_ptr<Tables> tables_;
};

}  // namespace limerank
