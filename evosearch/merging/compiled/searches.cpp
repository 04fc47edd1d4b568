// Searches by magnitude: histograms, the cut of the largest entries, and positions within rows (magnitudes.py, della.py).

#include <cmath>
#include <utility>
#include <vector>

#include "arrays.h"
#include "tiles.h"

namespace {

// Magnitudes of n entries whose θ₀ and τ are loaded: |τ| of one model, or the variance over several.
void measure(int parents, int64_t n, Scratch& s) {
    if (parents > 1) with_models<Variance>(parents, parents, s.tau(0), n, s.acc);
    const float* x = parents > 1 ? s.acc : s.tau(0);
    for (int64_t j = 0; j < n; j++) s.acc[j] = std::fabs(x[j]);  // also of variances: NaN may have a sign, and bins have none
}

// Magnitudes of a tile.
void magnitudes(const Array& base, const Array* models, int parents, int64_t start, int64_t n, Scratch& s) {
    load(base, start, n, s.theta_0);
    for (int i = 0; i < parents; i++) subtract(models[i], s.theta_0, start, n, s.tau(i));
    measure(parents, n, s);
}

// Magnitudes of n entries at positions counted from `start`, at most a tile of them.
void gather(const Array& base, const Array* models, int parents, int64_t start, const int32_t* near, int64_t n, Scratch& s) {
    for (int64_t k = 0; k < n; k++) s.theta_0[k] = value_at(base, start + near[k]);
    for (int i = 0; i < parents; i++) {
        float* __restrict tau = s.tau(i);
        for (int64_t k = 0; k < n; k++) tau[k] = value_at(models[i], start + near[k]) - s.theta_0[k];
    }
    measure(parents, n, s);
}

void read_ahead(const Array& x, int64_t j) { __builtin_prefetch(static_cast<const char*>(x.data) + j * width(x)); }

// Find the entries of `group` among n codes: their positions. Begins to read their inputs, of which few lines are touched.
int64_t members(const Array& base, const Array* models, int parents, const uint8_t* known, int64_t start, int64_t n, uint8_t group,
                int32_t* near) {
    int64_t hits = 0;
    each_equal(known + start, n, group, [&](int64_t j) {
        near[hits++] = static_cast<int32_t>(j);
        read_ahead(base, start + j);
        for (int i = 0; i < parents; i++) read_ahead(models[i], start + j);
    });
    return hits;
}

}  // namespace

extern "C" {

// Count nonzero magnitudes by their upper 16 bits: counts (BINS,).
void histogram(const Array* base, const Array* models, int parents, int64_t size, int64_t* counts, int threads) {
    const int64_t parts = (size + PART - 1) / PART;
#pragma omp parallel num_threads(threads) if (parts > 1)
    {
        Scratch s(parents);
        std::vector<int64_t> even(BINS, 0), odd(BINS, 0);  // two: entries in a row are often in one bin
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            for_tiles(part * PART, std::min(size, (part + 1) * PART), [&](int64_t start, int64_t n) {
                magnitudes(*base, models, parents, start, n, s);
                int64_t j = 0;
                for (; j + 1 < n; j += 2) {
                    const uint32_t one = float_to_bits(s.acc[j]), two = float_to_bits(s.acc[j + 1]);
                    even[one >> 16] += one != 0;
                    odd[two >> 16] += two != 0;
                }
                if (j < n) even[float_to_bits(s.acc[j]) >> 16] += float_to_bits(s.acc[j]) != 0;
            });
#pragma omp critical
        for (int64_t i = 0; i < BINS; i++) counts[i] += even[i] + odd[i];
    }
}

// Write the group of every entry: codes (size,).
void codes(const Array* base, const Array* models, int parents, int64_t size, const uint8_t* groups, uint8_t* out, int threads) {
    const int64_t parts = (size + PART - 1) / PART;
#pragma omp parallel num_threads(threads) if (parts > 1)
    {
        Scratch s(parents);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            for_tiles(part * PART, std::min(size, (part + 1) * PART), [&](int64_t start, int64_t n) {
                magnitudes(*base, models, parents, start, n, s);
                for (int64_t j = 0; j < n; j++) out[start + j] = groups[float_to_bits(s.acc[j]) >> 16];
            });
    }
}

// Find the `rank`-th largest entry of one bin. Returns its lower 16 bits; `end` is set so that, of the entries equal to it, those
// among the `rank` first have lower indices. `known` are the codes of all entries, or null.
int64_t threshold(const Array* base, const Array* models, int parents, int64_t size, const uint8_t* known, uint8_t group, uint32_t bin,
                  int64_t rank, int64_t* end, int threads) {
    const int64_t parts = (size + PART - 1) / PART;
    std::vector<std::vector<std::pair<int64_t, uint16_t>>> found(parts);
#pragma omp parallel num_threads(threads) if (parts > 1)
    {
        Scratch s(parents);
        std::vector<int32_t> near(known ? std::min(size, PART) : 0);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = part * PART, end_of_part = std::min(size, first + PART);
            const auto keep = [&](int64_t n, auto index) {
                for (int64_t k = 0; k < n; k++) {
                    const uint32_t bits = float_to_bits(s.acc[k]);
                    if (bits >> 16 == bin && bits) found[part].emplace_back(index(k), static_cast<uint16_t>(bits));
                }
            };
            if (known) {
                const int64_t hits = members(*base, models, parents, known, first, end_of_part - first, group, near.data());
                for_tiles(0, hits, [&](int64_t start, int64_t n) {
                    gather(*base, models, parents, first, near.data() + start, n, s);
                    keep(n, [&](int64_t k) { return first + near[start + k]; });
                });
            } else {
                for_tiles(first, end_of_part, [&](int64_t start, int64_t n) {
                    magnitudes(*base, models, parents, start, n, s);
                    keep(n, [&](int64_t k) { return start + k; });
                });
            }
        }
    }
    std::vector<uint16_t> lows;
    for (const auto& part : found)
        for (const auto& one : part) lows.push_back(one.second);
    std::nth_element(lows.begin(), lows.begin() + (rank - 1), lows.end(), [](uint16_t a, uint16_t b) { return a > b; });
    const uint16_t low = lows[rank - 1];
    int64_t equal = rank, last = 0;
    for (uint16_t one : lows) equal -= one > low;
    *end = size;
    for (const auto& part : found)
        for (const auto& one : part)
            if (one.second == low && equal-- > 0) last = one.first + 1;
    if (equal < 0) *end = last;  // some of the equal ones are not among the first
    return low;
}

// Write the upper byte of every entry's lane (philox.py): out (size,).
void upper_bytes(uint64_t key0, uint64_t key1, int64_t size, uint8_t* out, int threads) {
    const int64_t parts = (size + PART - 1) / PART;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (parts > 1)
    for (int64_t part = 0; part < parts; part++)
        for_tiles(part * PART, std::min(size, (part + 1) * PART), [&](int64_t start, int64_t n) {
            uint32_t lane[TILE];
            lanes(key0, key1, start, n, lane);
            for (int64_t j = 0; j < n; j++) out[start + j] = static_cast<uint8_t>(lane[j] >> 24);
        });
}

// Each entry's position among the largest of its row (`della._places`): int16, or int32 if `wide`.
void places(const Array* base, const Array* theta, int64_t rows, int64_t length, int wide, void* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> ends(2 * length);
        std::vector<uint32_t> keys(length), order(length), sorted(length);
#pragma omp for schedule(dynamic, 64)
        for (int64_t row = 0; row < rows; row++) {
            float *theta_0 = ends.data(), *tau = theta_0 + length;
            load(*base, row * length, length, theta_0);
            subtract(*theta, theta_0, row * length, length, tau);
            uint32_t counts[4][256] = {};
            for (int64_t j = 0; j < length; j++) {
                keys[j] = 0x7fffffff - (float_to_bits(tau[j]) & 0x7fffffff);  // the largest first
                order[j] = static_cast<uint32_t>(j);
                for (int digit = 0; digit < 4; digit++) counts[digit][keys[j] >> (8 * digit) & 255]++;
            }
            for (int digit = 0; digit < 4; digit++) {  // radix sort, which is stable
                uint32_t* count = counts[digit];
                if (count[keys[0] >> (8 * digit) & 255] == length) continue;
                uint32_t place = 0;
                for (int i = 0; i < 256; i++) std::swap(count[i], place), place += count[i];
                for (int64_t j = 0; j < length; j++) sorted[count[keys[order[j]] >> (8 * digit) & 255]++] = order[j];
                order.swap(sorted);
            }
            if (wide)
                for (int64_t j = 0; j < length; j++) static_cast<int32_t*>(out)[row * length + order[j]] = static_cast<int32_t>(j);
            else
                for (int64_t j = 0; j < length; j++) static_cast<int16_t*>(out)[row * length + order[j]] = static_cast<int16_t>(j);
        }
    }
}

}  // extern "C"
