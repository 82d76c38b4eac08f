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

// Kinds of GCC and Clang.
using Four = float __attribute__((vector_size(4 * sizeof(float))));
using Integers = std::int32_t __attribute__((vector_size(4 * sizeof(std::int32_t))));
using Bytes = std::int8_t __attribute__((vector_size(4)));

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
        bool fine = true;
        for (std::size_t i = 0; i < keys.shape(0); i++)
            fine = fine && sets.data()[i] > 0 && static_cast<std::size_t>(sets.data()[i]) < kinds.shape(0) &&
                   (i == 0 || keys.data()[i - 1] <= keys.data()[i]);
        expect(fine, "keys of anchored values must ascend, and their sets exist");
        for (std::size_t i = 0; i < kinds.shape(0); i++)
            fine = fine && kinds.data()[i] >= 0 && (kinds.data()[i] < features_ || i == 0);
        expect(fine, "a set is of no anchored feature");
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
        const std::size_t fours = (r + 3) / 4;  // sums are padded to it
        const std::size_t kinds = static_cast<std::size_t>(features_) + 1;
        const std::size_t values =
            static_cast<std::size_t>(std::lower_bound(keys, keys + count, item_tokens_) - keys);
        std::vector<Four> sums;           // of the touched sets, [sets, fours]
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
                        sums.resize(sums.size() + fours, Four{});
                    }
                    Four* to = sums.data() + static_cast<std::size_t>(slot - 1) * fours;
                    for (std::size_t j = 0; j < fours; j++) to[j] += shares_.data()[at] * four(links + v * r, j);
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
        std::vector<Four> most(kinds * fours, Four{}), step(fours, Four{});
        const auto larger = [](Four& of, const Four& z) {
            const Four size = z < 0.0f ? -z : z;
            of = size > of ? size : of;
        };
        for (std::size_t s = 0; s < made.sets.size(); s++)
            for (std::size_t j = 0; j < fours; j++)
                larger(most[static_cast<std::size_t>(kinds_.data()[made.sets[s]]) * fours + j], sums[s * fours + j]);
        for (std::size_t v = values; v < end; v++)
            for (std::size_t j = 0; j < fours; j++) larger(most[(kinds - 1) * fours + j], four(links + v * r, j));
        if (made.sets.empty() && made.rows.empty()) return made;
        const float levels = 127.0f - 0.5f * static_cast<float>(kinds);
        for (std::size_t j = 0; j < fours; j++) {
            for (std::size_t k = 0; k < kinds; k++) step[j] += most[k * fours + j];
            step[j] /= levels;
        }
        made.step.resize(r);
        std::memcpy(made.step.data(), step.data(), r * sizeof(float));
        const auto size = static_cast<std::size_t>(line());
        for (std::size_t s = 0; s < made.sets.size(); s++)
            for (std::size_t j = 0; j < fours; j++)
                coded(sums[s * fours + j], step[j], j,
                      made.table.get() + static_cast<std::size_t>(made.sets[s]) * size);
        made.codes.resize(made.rows.size() * size);
        for (std::size_t i = 0; i < made.rows.size(); i++)
            for (std::size_t j = 0; j < fours; j++)
                coded(four(links + (values + i) * r, j), step[j], j, made.codes.data() + i * size);
        return made;
    }

  private:
    // The j-th four of r numbers, zeros behind them.
    Four four(const float* of, std::size_t j) const {
        Four z = {};
        const auto r = static_cast<std::size_t>(links_);
        if (r - 4 * j >= 4) std::memcpy(&z, of + 4 * j, sizeof z);
        else std::memcpy(&z, of + 4 * j, (r - 4 * j) * sizeof(float));
        return z;
    }

    void coded(const Four& z, const Four& step, std::size_t j, std::int8_t* to) const {
        // To the nearest integer, ties to even, by the rounding of this addition.
        const Four codes = (z / (step > 0.0f ? step : Four{} + 1.0f) + 12582912.0f) - 12582912.0f;
        const Four fine = (codes >= -127.0f) & (codes <= 127.0f) ? codes : Four{};  // 0 for NaN
        const auto integers = __builtin_convertvector(fine, Integers);
        const auto bytes = __builtin_convertvector(integers, Bytes);
        std::memcpy(to + 4 * j, &bytes, sizeof bytes);
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
