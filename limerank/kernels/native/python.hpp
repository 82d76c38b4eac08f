// Shared by the Python bindings: arrays in and out, the paths of this machine, and threads.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "catalogue.hpp"

namespace nb = nanobind;

// Compiled for several processors; the present one decides when the module is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define FASTEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTEST
#endif

namespace limerank {

template <class T, int DIMENSIONS>
using In = nb::ndarray<const T, nb::ndim<DIMENSIONS>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T>;

constexpr std::int64_t MOST_COLUMNS = 1 << 16;  // 2^16 * 255 * 127 < 2^31: sums never overflow

// A weight one event further back. Below 1e-20 it counts as 0: much smaller numbers are slow to multiply.
inline float faded(float weight, float fading) {
    const float next = weight * fading;
    return next < 1e-20f ? 0.0f : next;
}

inline void expect(bool fine, const std::string& message) {
    if (!fine) throw std::invalid_argument(message);
}

inline std::vector<const Path*> paths() {
    std::vector<const Path*> found;
#if defined(__x86_64__)
    for (const Path* path : {&avx512_path, &avx2_path})
        if (path->supported()) found.push_back(path);
#endif
    found.push_back(&portable_path);
    return found;
}

inline const Path& path_named(const std::optional<std::string>& name) {
    const std::vector<const Path*> found = paths();
    if (!name) return *found[0];
    std::string known;
    for (const Path* path : found) {
        if (*name == path->name) return *path;
        known += (known.empty() ? "" : ", ") + std::string(path->name);
    }
    throw std::invalid_argument("no path '" + *name + "' on this machine; it has " + known);
}

template <class T>
Out<T> array(std::vector<T>&& values, std::initializer_list<std::size_t> shape) {
    auto* held = new std::vector<T>(std::move(values));
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return Out<T>(held->data(), shape, owner);
}

// Run function(thread, low, high) over [0, count) in `threads` threads, cut at multiples of `step`;
// each gets `least` or more.
template <class Function>
void in_threads(std::int64_t count, std::int64_t step, std::int64_t least, int threads,
                Function function) {
    const std::int64_t steps = (count + step - 1) / step;
    const int used = static_cast<int>(
        std::max<std::int64_t>(1, std::min<std::int64_t>(threads, count / least)));
    const auto edge = [&](int t) { return std::min(count, steps * t / used * step); };
    if (used == 1) return function(0, std::int64_t{0}, count);
    std::vector<std::thread> running;
    std::vector<std::exception_ptr> failed(static_cast<std::size_t>(used));
    const auto guarded = [&](int t) {
        try {
            function(t, edge(t), edge(t + 1));
        } catch (...) {
            failed[static_cast<std::size_t>(t)] = std::current_exception();
        }
    };
    try {
        for (int t = 1; t < used; t++) running.emplace_back(guarded, t);
    } catch (...) {
        for (std::thread& thread : running) thread.join();
        throw;
    }
    guarded(0);
    for (std::thread& thread : running) thread.join();
    for (const std::exception_ptr& error : failed)
        if (error) std::rethrow_exception(error);
}

void add_personaliser(nb::module_& m);
void add_anchored_links(nb::module_& m);
void add_profiles(nb::module_& m);
void add_shared_logits(nb::module_& m);

}  // namespace limerank
