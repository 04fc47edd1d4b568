// Fused float32 kernels of the merge methods for CPUs; `library.py` compiles this folder's files.
//
// The eager functions (sums.py, election.py, reinforced.py, methods/sce.py, magnitudes.py, ...) are the definitions. A tile of
// every input is loaded once, and each loop over it performs the operations of one eager line, in the same order, each rounded to
// float32: results have the same bits. `std::fma` stands where torch fuses (`add_` with alpha); the compiler must fuse nowhere else
// (-ffp-contract=off). Sums (`products`, `sizes`) are made in float64 over the same blocks as in `kernels.totals`, but in another
// order within a block.

#include <cmath>
#include <vector>

#include "arrays.h"
#include "tiles.h"

namespace {

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

}  // extern "C"
