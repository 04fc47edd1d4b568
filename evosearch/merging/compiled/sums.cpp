// Sums in float64 over the blocks of `kernels.totals`.

#include <cmath>
#include <vector>

#include "arrays.h"
#include "tiles.h"

extern "C" {

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
