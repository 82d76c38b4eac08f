// The best k of a stream of values: a threshold that rises, and a buffer that is cut when it is full.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace limerank {

struct Found {
    float value;
    std::int64_t row;
};

// Greater values come first, of equal ones the lower row.
inline bool before(const Found& x, const Found& y) {
    return x.value > y.value || (x.value == y.value && x.row < y.row);
}

class Best {
  public:
    // Offers must come by ascending row, so that an equal value never displaces one in the buffer.
    explicit Best(std::size_t k) : k_(k), room_(k + std::max<std::size_t>(k, 256)) {
        held_.reserve(room_);
    }
    // The value that an offer has to exceed; NaN until there are k values, when any is accepted.
    bool welcome(float value) const { return !full_ || value > threshold_; }
    float threshold() const { return threshold_; }
    bool full() const { return full_; }
    void offer(float value, std::int64_t row) {
        held_.push_back({value, row});
        if (held_.size() == room_ || (!full_ && held_.size() == k_)) cut();
    }
    // The values in the buffer, best first.
    std::vector<Found>& sorted() {
        std::sort(held_.begin(), held_.end(), before);
        if (held_.size() > k_) held_.resize(k_);
        return held_;
    }

  private:
    void cut() {
        std::nth_element(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(k_) - 1,
                         held_.end(), before);
        held_.resize(k_);
        threshold_ = held_[k_ - 1].value;
        full_ = true;
    }
    std::size_t k_, room_;
    bool full_ = false;
    float threshold_ = -std::numeric_limits<float>::infinity();
    std::vector<Found> held_;
};

}  // namespace limerank
