// Tensors as the kernels get them, and the structures of `library.py`.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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
    const uint8_t* known;  // DROP, PRUNE: the upper byte of every entry's lane, or null
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

void subtract(const Array& model, const float* __restrict theta_0, int64_t start, int64_t n, float* __restrict tau) {
    if (model.type == BF16) {
        const uint16_t* in = static_cast<const uint16_t*>(model.data) + start;
        for (int64_t j = 0; j < n; j++) tau[j] = bits_to_float(static_cast<uint32_t>(in[j]) << 16) - theta_0[j];
        return;
    }
    load(model, start, n, tau);
    for (int64_t j = 0; j < n; j++) tau[j] -= theta_0[j];
}

template <typename Body>
void for_tiles(int64_t first, int64_t end, Body body) {
    for (int64_t start = first; start < end; start += TILE) body(start, std::min(TILE, end - start));
}

}  // namespace
