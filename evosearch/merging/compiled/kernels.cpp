// Fused float32 kernels of the merge methods for CPUs; `library.py` compiles this file, and describes the structures.
//
// The eager functions (sums.py, election.py, reinforced.py, methods/sce.py, magnitudes.py, ...) are the definitions. A tile of
// every input is loaded once, and each loop over it performs the operations of one eager line, in the same order, each rounded to
// float32: results have the same bits. `std::fma` stands where torch fuses (`add_` with alpha); the compiler must fuse nowhere else
// (-ffp-contract=off). Sums (`products`, `sizes`) are made in float64 over the same blocks as in `kernels.totals`, but in another
// order within a block.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

constexpr int64_t TILE = 1024;  // elements; a multiple of the lanes of a Philox block. A tile of each input stays in the L1 cache
constexpr int64_t PART = 1 << 16;  // elements that a thread takes at a time: whole tiles, and whole blocks of sums
constexpr int64_t BLOCK = 1 << 14;  // `kernels.BLOCK`
constexpr int64_t BINS = 1 << 15;  // `magnitudes.BINS`

enum Type : int32_t { F32, BF16, F16 };
enum Mode : int32_t { MODELS, DELTAS, ELECT, REINFORCED, SELECTED };
enum Signs : int32_t { MAGNITUDE, COUNT, COUNT_STRICT };
enum Flags : int32_t { OUTER = 1, INNER = 2, OUTLIERS = 4, DROP = 8, PRUNE = 16, WIDE = 32 };

}  // namespace

struct Array {
    const void* data;
    int64_t type;
};

struct Trim {
    float below, cut;
    int64_t end;
};

struct Change {  // what is kept of one task vector
    int32_t flags;
    Trim outer, inner;
    uint64_t key0, key1, limit;  // DROP, PRUNE
    const int64_t* limits;  // PRUNE: by place
    const float* divisors;  // by place, or null
    const void* places;  // int16, or int32 if WIDE
};

struct Plan {
    int32_t mode, parents, signs, normalize, has_zero, select, out_type, round_type;
    float lam, zero, epsilon;
    Trim selection;  // SELECTED with `select`
    int64_t size;
    const Array* base;  // null for MODELS
    const Array* models;
    const Change* changes;  // null: the identity
    const float* factors;
    const float* weights;
    void* out;
};

namespace {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline uint16_t to_bf16(float value) {  // to nearest, ties to even
    const uint32_t bits = float_to_bits(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float sign(float x) { return (x > 0 ? 1.0f : 0.0f) - (x < 0 ? 1.0f : 0.0f); }  // 0 for NaN, as in torch

void load(const Array& x, int64_t start, int64_t n, float* __restrict out) {
    if (x.type == F32) {
        std::memcpy(out, static_cast<const float*>(x.data) + start, n * sizeof(float));
    } else if (x.type == BF16) {
        const uint16_t* in = static_cast<const uint16_t*>(x.data) + start;
        for (int64_t j = 0; j < n; j++) out[j] = bits_to_float(static_cast<uint32_t>(in[j]) << 16);
    } else {
        const _Float16* in = static_cast<const _Float16*>(x.data) + start;
        for (int64_t j = 0; j < n; j++) out[j] = static_cast<float>(in[j]);
    }
}

inline int64_t width(const Array& x) { return x.type == F32 ? 4 : 2; }

inline float value_at(const Array& x, int64_t j) {
    if (x.type == BF16) return bits_to_float(static_cast<uint32_t>(static_cast<const uint16_t*>(x.data)[j]) << 16);
    if (x.type == F16) return static_cast<float>(static_cast<const _Float16*>(x.data)[j]);
    return static_cast<const float*>(x.data)[j];
}

// Round to `type`, as a float32.
template <int TYPE>
inline float rounded(float x) {
    if (TYPE == BF16) return bits_to_float(static_cast<uint32_t>(to_bf16(x)) << 16);
    if (TYPE == F16) return static_cast<float>(static_cast<_Float16>(x));
    return x;
}

template <int TYPE, typename Out, typename Convert>
void put(const float* __restrict x, int64_t n, Out* __restrict out, float* largest, Convert convert) {
    // Infinity and NaN have the largest bits without a sign: an integer maximum replaces comparisons that must mind NaN.
    uint32_t most = 0;
    for (int64_t j = 0; j < n; j++) {
        const float value = rounded<TYPE>(x[j]);
        most = std::max(most, float_to_bits(value) & 0x7fffffff);
        out[j] = convert(value);
    }
    most = std::max(most, float_to_bits(*largest) & 0x7fffffff);
    *largest = bits_to_float(most);
}

template <int TYPE>
void store_rounded(const Plan& plan, int64_t start, int64_t n, const float* x, float* largest) {
    if (plan.out_type == F32)
        put<TYPE>(x, n, static_cast<float*>(plan.out) + start, largest, [](float value) { return value; });
    else if (plan.out_type == BF16)
        put<TYPE>(x, n, static_cast<uint16_t*>(plan.out) + start, largest, [](float value) {
            return TYPE == BF16 ? static_cast<uint16_t>(float_to_bits(value) >> 16) : to_bf16(value);
        });
    else
        put<TYPE>(x, n, static_cast<_Float16*>(plan.out) + start, largest, [](float value) { return static_cast<_Float16>(value); });
}

// Round to `round_type` and store as `out_type`; `largest` becomes NaN with any value.
void store(const Plan& plan, int64_t start, int64_t n, const float* x, float* largest) {
    if (plan.round_type == BF16) return store_rounded<BF16>(plan, start, n, x, largest);
    if (plan.round_type == F16) return store_rounded<F16>(plan, start, n, x, largest);
    store_rounded<F32>(plan, start, n, x, largest);
}

void shrink(float* __restrict x, int64_t n, float bound) {  // hardshrink: NaN stays
    for (int64_t j = 0; j < n; j++) x[j] = (x[j] >= -bound && x[j] <= bound) ? 0.0f : x[j];
}

void trim(const Trim& by, float* x, int64_t start, int64_t n) {
    const int64_t before = std::min(std::max(by.end - start, int64_t{0}), n);
    shrink(x, before, by.below);
    shrink(x + before, n - before, by.cut);
}

// The lanes of elements start ... start + n, rounded up to whole blocks; `start` is a multiple of 8 (philox.py has the definition).
void lanes(uint64_t key0, uint64_t key1, int64_t start, int64_t n, uint32_t* __restrict out) {
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

template <typename Place>
void prune(const Change& by, const Place* places, const uint32_t* lane, float* __restrict tau, int64_t n) {
    for (int64_t j = 0; j < n; j++) tau[j] *= static_cast<int64_t>(lane[j]) < by.limits[places[j]] ? 1.0f : 0.0f;
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

void change(const Change& by, float* __restrict tau, int64_t start, int64_t n, Scratch& s) {
    if (by.flags & (DROP | PRUNE)) lanes(by.key0, by.key1, start, n, s.lane);
    if (by.flags & DROP) {  // before a trim, which is of what is left
        const uint32_t limit = static_cast<uint32_t>(by.limit);
        for (int64_t j = 0; j < n; j++) tau[j] *= s.lane[j] < limit ? 1.0f : 0.0f;
    }
    if (by.flags & OUTLIERS) std::memcpy(s.spare, tau, n * sizeof(float));
    if (by.flags & OUTER) trim(by.outer, tau, start, n);
    if (by.flags & OUTLIERS) {
        if (by.flags & INNER) trim(by.inner, s.spare, start, n);
        for (int64_t j = 0; j < n; j++) tau[j] -= s.spare[j];
    }
    if (by.flags & PRUNE) {
        if (by.flags & WIDE)
            prune(by, static_cast<const int32_t*>(by.places) + start, s.lane, tau, n);
        else
            prune(by, static_cast<const int16_t*>(by.places) + start, s.lane, tau, n);
    }
}

void subtract(const Array& model, const float* __restrict theta_0, int64_t start, int64_t n, float* __restrict tau) {
    if (model.type == BF16) {
        const uint16_t* in = static_cast<const uint16_t*>(model.data) + start;
        for (int64_t j = 0; j < n; j++) tau[j] = bits_to_float(static_cast<uint32_t>(in[j]) << 16) - theta_0[j];
        return;
    }
    load(model, start, n, tau);
    for (int64_t j = 0; j < n; j++) tau[j] -= theta_0[j];
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

template <int SIGNS, bool DIVIDES, bool ERASE, int K>
void elect_tile(const Plan& plan, int64_t n, Scratch& s) {
    const int64_t parents = K ? K : plan.parents;
    const float *__restrict tau = s.tau(0), *__restrict theta_0 = s.theta_0;
    const Numbers<K> factors(plan.factors), weights(plan.weights);
    const float lam = plan.lam;
    float* __restrict acc = s.acc;
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) {
        float vote = 0, sum = 0, divisor = 0;
        for (int64_t i = 0; i < parents; i++) {
            const float x = ERASE ? tau[i * TILE + j] : tau[i * TILE + j] * factors[i];
            vote += SIGNS == MAGNITUDE ? x : sign(x);
        }
        const float elected = SIGNS == COUNT_STRICT ? sign(vote) : vote < 0 ? -1.0f : 1.0f;
        for (int64_t i = 0; i < parents; i++) {
            const float x = ERASE ? tau[i * TILE + j] : tau[i * TILE + j] * factors[i];
            const float own = x * elected, agreeing = own < 0 ? 0.0f : own;  // NaN stays
            sum = ERASE ? std::fma(agreeing, weights[i], sum) : sum + agreeing;
            const float w = weights[i];
            if (DIVIDES) divisor += agreeing > 0 ? w : 0.0f;
        }
        if (DIVIDES) sum /= divisor == 0 ? 1.0f : divisor;
        sum *= elected;
        if (!ERASE) sum *= lam;
        acc[j] = sum + theta_0[j];
    }
}

template <int K>
struct Elect {
    static void run(const Plan& plan, int64_t n, Scratch& s) {
        if (plan.mode == SELECTED) return elect_tile<MAGNITUDE, true, true, K>(plan, n, s);  // wᵢ multiplies in the sum alone
        if (plan.signs == COUNT_STRICT) return with<COUNT_STRICT>(plan, n, s);
        if (plan.signs == COUNT) return with<COUNT>(plan, n, s);
        with<MAGNITUDE>(plan, n, s);
    }
    template <int SIGNS>
    static void with(const Plan& plan, int64_t n, Scratch& s) {
        if (plan.normalize) return elect_tile<SIGNS, true, false, K>(plan, n, s);
        elect_tile<SIGNS, false, false, K>(plan, n, s);
    }
};

template <int K>
struct Add {  // Σ fᵢxᵢ, then the rest of `sums.add_deltas`
    static void run(const Plan& plan, int64_t n, Scratch& s) {
        const int64_t parents = K ? K : plan.parents;
        const float *__restrict x = s.tau(0), *__restrict theta_0 = s.theta_0;
        const Numbers<K> factors(plan.factors);
        const bool deltas = plan.mode == DELTAS, has_zero = deltas && plan.has_zero;
        const float zero = plan.zero;
        float* __restrict acc = s.acc;
#pragma GCC ivdep
        for (int64_t j = 0; j < n; j++) {
            float sum = x[j] * factors[0];
            for (int64_t i = 1; i < parents; i++) sum = std::fma(x[i * TILE + j], factors[i], sum);
            acc[j] = sum;
        }
        if (has_zero)
            for (int64_t j = 0; j < n; j++) acc[j] += zero;
        if (deltas)
            for (int64_t j = 0; j < n; j++) acc[j] += theta_0[j];
    }
};

template <int K>
struct Reinforce {
    static void run(const Plan& plan, int64_t n, Scratch& s) {
        const int64_t parents = K ? K : plan.parents;
        const float *__restrict tau = s.tau(0), *__restrict theta_0 = s.theta_0;
        const Numbers<K> factors(plan.factors);
        const float epsilon = plan.epsilon;
        float* __restrict acc = s.acc;
#pragma GCC ivdep
        for (int64_t j = 0; j < n; j++) {
            float count = 0, sum = 0;
            for (int64_t i = 0; i < parents; i++) count += std::fabs(tau[i * TILE + j]) > epsilon ? 1.0f : 0.0f;
            for (int64_t i = 0; i < parents; i++) {
                const float x = tau[i * TILE + j], own = x * (std::fabs(x) > epsilon ? 1.0f : 0.0f);
                const float scale = factors[i];  // minus 1
                sum += own * ((count == 1 ? scale : 0.0f) + 1.0f);
            }
            acc[j] = sum / (count < 1 ? 1.0f : count) + theta_0[j];
        }
    }
};

void merge_tile(const Plan& plan, int64_t start, int64_t n, Scratch& s) {
    if (plan.mode == MODELS) {
        for (int i = 0; i < plan.parents; i++) load(plan.models[i], start, n, s.tau(i));
        return with_models<Add>(plan.parents, plan, n, s);
    }
    load(*plan.base, start, n, s.theta_0);
    if (plan.mode == SELECTED) {
        selected(plan, start, n, s);
        return with_models<Elect>(plan.parents, plan, n, s);
    }
    for (int i = 0; i < plan.parents; i++) {
        subtract(plan.models[i], s.theta_0, start, n, s.tau(i));
        if (plan.changes) change(plan.changes[i], s.tau(i), start, n, s);
    }
    if (plan.mode == DELTAS) return with_models<Add>(plan.parents, plan, n, s);
    if (plan.mode == REINFORCED) return with_models<Reinforce>(plan.parents, plan, n, s);
    with_models<Elect>(plan.parents, plan, n, s);
}

// Magnitudes of a tile: |τ| of one model, or the variance over several.
void magnitudes(const Array& base, const Array* models, int parents, int64_t start, int64_t n, Scratch& s) {
    load(base, start, n, s.theta_0);
    for (int i = 0; i < parents; i++) subtract(models[i], s.theta_0, start, n, s.tau(i));
    if (parents > 1) with_models<Variance>(parents, parents, s.tau(0), n, s.acc);
    const float* x = parents > 1 ? s.acc : s.tau(0);
    for (int64_t j = 0; j < n; j++) s.acc[j] = std::fabs(x[j]);  // also of variances: NaN may have a sign, and bins have none
}

template <typename Body>
void for_tiles(int64_t first, int64_t end, Body body) {
    for (int64_t start = first; start < end; start += TILE) body(start, std::min(TILE, end - start));
}

}  // namespace

extern "C" {

// Merge one tensor. Writes the result, and its largest magnitude (NaN if any value is).
void merge(const Plan* plan, float* largest, int threads) {
    const int64_t parts = (plan->size + PART - 1) / PART;
    std::vector<float> found(parts, 0.0f);
#pragma omp parallel num_threads(threads) if (parts > 1)
    {
        Scratch s(plan->parents);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            for_tiles(part * PART, std::min(plan->size, (part + 1) * PART), [&](int64_t start, int64_t n) {
                merge_tile(*plan, start, n, s);
                store(*plan, start, n, s.acc, &found[part]);
            });
    }
    *largest = 0;
    for (float one : found)
        if (std::isnan(one) || one > *largest) *largest = one;
}

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
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            for_tiles(part * PART, std::min(size, (part + 1) * PART), [&](int64_t first, int64_t count) {
                int32_t near[TILE];  // entries of the bin's group, read ahead: a search touches few of the inputs' lines
                int64_t hits = 0;
                for (int64_t start = first; known && start < first + count; start += 64) {
                    const int64_t n = std::min(int64_t{64}, first + count - start);
                    uint8_t hit = 0;
                    for (int64_t j = 0; j < n; j++) hit |= known[start + j] == group;
                    if (!hit) continue;
                    __builtin_prefetch(static_cast<const char*>(base->data) + start * width(*base));
                    for (int i = 0; i < parents; i++)
                        __builtin_prefetch(static_cast<const char*>(models[i].data) + start * width(models[i]));
                    for (int64_t j = start; j < start + n; j++) {
                        near[hits] = static_cast<int32_t>(j - first);
                        hits += known[j] == group;
                    }
                }
                if (known && parents == 1) {
                    for (int64_t i = 0; i < hits; i++) {
                        const int64_t j = first + near[i];
                        const uint32_t bits = float_to_bits(std::fabs(value_at(models[0], j) - value_at(*base, j)));
                        if (bits >> 16 == bin && bits) found[part].emplace_back(j, static_cast<uint16_t>(bits));
                    }
                    return;
                }
                if (known && !hits) return;
                magnitudes(*base, models, parents, first, count, s);
                for (int64_t j = 0; j < count; j++) {
                    const uint32_t bits = float_to_bits(s.acc[j]);
                    if (bits >> 16 == bin && bits) found[part].emplace_back(first + j, static_cast<uint16_t>(bits));
                }
            });
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

// Sums of products of every pair of vectors over blocks, (blocks, pairs): in float64 with `wide`, else the products in float32.
void products(const Array* base, const Array* models, int vectors, int64_t size, int wide, double* out, int threads) {
    const int64_t blocks = (size + BLOCK - 1) / BLOCK, pairs = static_cast<int64_t>(vectors) * (vectors + 1) / 2;
#pragma omp parallel num_threads(threads) if (blocks > 4)
    {
        std::vector<float> buffer((vectors + 1) * TILE);
        std::vector<double> exact(vectors * TILE);
        constexpr int W = 16;  // partial sums, one per vector lane
        std::vector<double> partial(pairs * W);
#pragma omp for schedule(dynamic, 4)
        for (int64_t block = 0; block < blocks; block++) {
            std::fill(partial.begin(), partial.end(), 0.0);
            for_tiles(block * BLOCK, std::min(size, (block + 1) * BLOCK), [&](int64_t start, int64_t n) {
                float* theta_0 = buffer.data() + vectors * TILE;
                if (base) load(*base, start, n, theta_0);
                for (int i = 0; i < vectors; i++) {
                    float* x = buffer.data() + i * TILE;
                    double* own = exact.data() + i * TILE;
                    load(models[i], start, n, x);
                    for (int64_t j = 0; j < n; j++) own[j] = x[j];
                    if (base && wide)
                        for (int64_t j = 0; j < n; j++) own[j] -= theta_0[j];
                    if (base && !wide)
                        for (int64_t j = 0; j < n; j++) x[j] -= theta_0[j];
                    std::memset(own + n, 0, (TILE - n) * sizeof(double));
                    std::memset(x + n, 0, (TILE - n) * sizeof(float));
                }
                double* __restrict sums = partial.data();
                for (int a = 0; a < vectors; a++)
                    for (int b = a; b < vectors; b++, sums += W) {
                        const double *p = exact.data() + a * TILE, *q = exact.data() + b * TILE;
                        const float *x = buffer.data() + a * TILE, *y = buffer.data() + b * TILE;
                        double own[W];
                        std::memcpy(own, sums, sizeof own);
                        for (int64_t j = 0; j < TILE; j += W)
                            for (int w = 0; w < W; w++)
                                own[w] += wide ? p[j + w] * q[j + w] : static_cast<double>(x[j + w] * y[j + w]);
                        std::memcpy(sums, own, sizeof own);
                    }
            });
            for (int64_t pair = 0; pair < pairs; pair++) {
                double sum = 0;
                for (int w = 0; w < W; w++) sum += partial[pair * W + w];
                out[block * pairs + pair] = sum;
            }
        }
    }
}

// Sums over blocks (blocks, models) of squares of the selected task vectors of `sce`, or with ELECT of |changed τ|.
void sizes(const Plan* plan, double* out, int threads) {
    const int64_t blocks = (plan->size + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(threads) if (blocks > 4)
    {
        Scratch s(plan->parents);
#pragma omp for schedule(dynamic, 4)
        for (int64_t block = 0; block < blocks; block++) {
            double* sums = out + block * plan->parents;
            for (int i = 0; i < plan->parents; i++) sums[i] = 0;
            for_tiles(block * BLOCK, std::min(plan->size, (block + 1) * BLOCK), [&](int64_t start, int64_t n) {
                load(*plan->base, start, n, s.theta_0);
                if (plan->mode == SELECTED) {
                    selected(*plan, start, n, s);
                } else {
                    for (int i = 0; i < plan->parents; i++) {
                        subtract(plan->models[i], s.theta_0, start, n, s.tau(i));
                        if (plan->changes) change(plan->changes[i], s.tau(i), start, n, s);
                    }
                }
                for (int i = 0; i < plan->parents; i++) {
                    constexpr int W = 16;
                    float* tau = s.tau(i);
                    std::fill(tau + n, tau + TILE, 0.0f);
                    for (int64_t j = 0; j < n; j++) tau[j] = plan->mode == SELECTED ? tau[j] * tau[j] : std::fabs(tau[j]);
                    double own[W] = {};
                    for (int64_t j = 0; j < TILE; j += W)
                        for (int w = 0; w < W; w++) own[w] += tau[j + w];
                    for (int w = 0; w < W; w++) sums[i] += own[w];
                }
            });
        }
    }
}

}  // extern "C"
