// Task vectors of a tile: what is kept of them, and loops over the models inside of loops over entries.

#pragma once

#include <vector>

#include "arrays.h"

namespace {

void shrink(float* __restrict x, int64_t n, float bound) {  // hardshrink: NaN stays
    for (int64_t j = 0; j < n; j++) x[j] = (x[j] >= -bound && x[j] <= bound) ? 0.0f : x[j];
}

void trim(const Trim& by, float* x, int64_t start, int64_t n) {
    const int64_t before = std::min(std::max(by.end - start, int64_t{0}), n);
    shrink(x, before, by.below);
    shrink(x + before, n - before, by.cut);
}

// The lanes of elements start ... start + n, rounded up to whole blocks; `start` is a multiple of 8 (philox.py has the definition).
[[gnu::noinline]] void lanes(uint64_t key0, uint64_t key1, int64_t start, int64_t n, uint32_t* __restrict out) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word is its first lane");
    const uint64_t first = static_cast<uint64_t>(start) / 8, blocks = (static_cast<uint64_t>(n) + 7) / 8;
    for (uint64_t b = 0; b < blocks; b++) {  // the processor runs several blocks at a time
        uint64_t x0 = first + b, x1 = 0, x2 = 0, x3 = 0, k0 = key0, k1 = key1;
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            const unsigned __int128 p0 = static_cast<unsigned __int128>(x0) * 0xD2E7470EE14C6C93ULL;
            const unsigned __int128 p1 = static_cast<unsigned __int128>(x2) * 0xCA5A826395121157ULL;
            x0 = static_cast<uint64_t>(p1 >> 64) ^ x1 ^ k0;
            x2 = static_cast<uint64_t>(p0 >> 64) ^ x3 ^ k1;
            x1 = static_cast<uint64_t>(p1);
            x3 = static_cast<uint64_t>(p0);
            k0 += 0x9E3779B97F4A7C15ULL;
            k1 += 0xBB67AE8584CAA73BULL;
        }
        const uint64_t words[4] = {x0, x1, x2, x3};
        std::memcpy(out + 8 * b, words, sizeof words);
    }
}

// Call `hit` with the index of every byte that equals `value`.
template <typename Hit>
void each_equal(const uint8_t* __restrict bytes, int64_t n, uint8_t value, Hit hit) {
    constexpr uint64_t ONES = 0x0101010101010101, HIGH = 0x8080808080808080;
    for (int64_t first = 0; first < n; first += 64) {
        const int64_t end = std::min(first + 64, n);
        uint8_t any = 0;
        for (int64_t j = first; j < end; j++) any |= bytes[j] == value;
        if (!any) continue;
        int64_t j = first;
        for (; j + 8 <= end; j += 8) {  // eight bytes in a word; those that become zero are found without a branch for each
            uint64_t word;
            std::memcpy(&word, bytes + j, sizeof word);
            word ^= value * ONES;
            for (uint64_t zero = ~(((word & ~HIGH) + ~HIGH) | word) & HIGH; zero; zero &= zero - 1) hit(j + (__builtin_ctzll(zero) >> 3));
        }
        for (; j < end; j++)
            if (bytes[j] == value) hit(j);
    }
}

[[gnu::noinline]] int64_t lane_of(const Change& by, int64_t index) {
    uint32_t block[8];
    lanes(by.key0, by.key1, index / 8 * 8, 8, block);
    return block[index % 8];
}

// Drop entries whose lane is `limit` or more. `known` are the upper bytes of all lanes, or null.
[[gnu::noinline]] void drop(const Change& by, float* __restrict tau, int64_t start, int64_t n, uint32_t* __restrict lane) {
    const uint32_t limit = static_cast<uint32_t>(by.limit);
    if (!by.known) {
        lanes(by.key0, by.key1, start, n, lane);
        for (int64_t j = 0; j < n; j++) tau[j] *= lane[j] < limit ? 1.0f : 0.0f;
        return;
    }
    const uint8_t* known = by.known + start;
    const uint8_t top = static_cast<uint8_t>(limit >> 24);
    for (int64_t j = 0; j < n; j++) tau[j] *= known[j] <= top ? 1.0f : 0.0f;
    each_equal(known, n, top, [&](int64_t j) {  // the other bytes of the lane decide
        if (lane_of(by, start + j) >= limit) tau[j] *= 0.0f;
    });
}

// Drop entries whose lane is the limit of their place or more; see `drop`.
template <typename Place>
[[gnu::noinline]] void prune(const Change& by, const Place* places, float* __restrict tau, int64_t start, int64_t n, uint32_t* __restrict lane) {
    if (by.known) {
        const uint8_t* known = by.known + start;
        uint8_t differ[TILE];
        for (int64_t j = 0; j < n; j++) {
            const int32_t top = static_cast<int32_t>(by.limits[places[j]] >> 24);  // up to 256
            tau[j] *= known[j] <= top ? 1.0f : 0.0f;
            differ[j] = known[j] != top;
        }
        each_equal(differ, n, 0, [&](int64_t j) {
            if (lane_of(by, start + j) >= by.limits[places[j]]) tau[j] *= 0.0f;
        });
    } else {
        lanes(by.key0, by.key1, start, n, lane);
        for (int64_t j = 0; j < n; j++) tau[j] *= static_cast<int64_t>(lane[j]) < by.limits[places[j]] ? 1.0f : 0.0f;
    }
    if (by.divisors)
        for (int64_t j = 0; j < n; j++) tau[j] /= by.divisors[places[j]];
}

struct Scratch {
    std::vector<float> rows;
    float *theta_0, *acc, *spare;
    uint32_t lane[TILE];
    explicit Scratch(int64_t parents) : rows((parents + 3) * TILE) {
        theta_0 = rows.data() + parents * TILE, acc = theta_0 + TILE, spare = acc + TILE;
    }
    float* tau(int64_t i) { return rows.data() + i * TILE; }
};

[[gnu::noinline]] void change(const Change& by, float* __restrict tau, int64_t start, int64_t n, Scratch& s) {
    if (by.flags & DROP) drop(by, tau, start, n, s.lane);  // before a trim, which is of what is left
    if (by.flags & OUTLIERS) std::memcpy(s.spare, tau, n * sizeof(float));
    if (by.flags & OUTER) trim(by.outer, tau, start, n);
    if (by.flags & OUTLIERS) {
        if (by.flags & INNER) trim(by.inner, s.spare, start, n);
        for (int64_t j = 0; j < n; j++) tau[j] -= s.spare[j];
    }
    if (by.flags & PRUNE) {
        if (by.flags & WIDE)
            prune(by, static_cast<const int32_t*>(by.places) + start, tau, start, n, s.lane);
        else
            prune(by, static_cast<const int16_t*>(by.places) + start, tau, start, n, s.lane);
    }
}

// Loops over the models inside of loops over entries become vector code if their number is known to the compiler: `K` is
// their number, or 0 for any other.
constexpr int MOST = 8;

// Numbers of the models, copied so that the compiler sees that a loop does not write to them.
template <int K>
struct Numbers {
    float own[K ? K : 1];
    const float* all;
    explicit Numbers(const float* values) : all(values) {
        for (int i = 0; i < K; i++) own[i] = values ? values[i] : 0.0f;
    }
    float operator[](int64_t i) const { return K ? own[i] : all[i]; }
};

template <template <int> class Loop, typename... Arguments>
void with_models(int models, Arguments&&... arguments) {
    switch (models) {
        case 1: return Loop<1>::run(arguments...);
        case 2: return Loop<2>::run(arguments...);
        case 3: return Loop<3>::run(arguments...);
        case 4: return Loop<4>::run(arguments...);
        case 5: return Loop<5>::run(arguments...);
        case 6: return Loop<6>::run(arguments...);
        case 7: return Loop<7>::run(arguments...);
        case MOST: return Loop<8>::run(arguments...);
        default: return Loop<0>::run(arguments...);
    }
}

// Population variance over the models, as `sce._variance`.
template <int K>
struct Variance {
    static void run(int64_t models, const float* __restrict tau, int64_t n, float* __restrict out) {
        const int64_t parents = K ? K : models;
        const float count = static_cast<float>(parents);
#pragma GCC ivdep
        for (int64_t j = 0; j < n; j++) {
            float mean = tau[j];
            for (int64_t i = 1; i < parents; i++) mean += tau[i * TILE + j];
            mean /= count;
            float sum = (tau[j] - mean) * (tau[j] - mean);
            for (int64_t i = 1; i < parents; i++) {
                const float move = tau[i * TILE + j] - mean;
                sum += move * move;
            }
            out[j] = sum / count;
        }
    }
};

// Task vectors of a tile, of which the selected entries are kept (`sce._selected`).
void selected(const Plan& plan, int64_t start, int64_t n, Scratch& s) {
    for (int i = 0; i < plan.parents; i++) subtract(plan.models[i], s.theta_0, start, n, s.tau(i));
    if (!plan.select) return;
    with_models<Variance>(plan.parents, plan.parents, s.tau(0), n, s.acc);
    trim(plan.selection, s.acc, start, n);
    for (int i = 0; i < plan.parents; i++) {
        float* __restrict tau = s.tau(i);
        for (int64_t j = 0; j < n; j++) tau[j] *= s.acc[j] != 0 ? 1.0f : 0.0f;
    }
}

}  // namespace
