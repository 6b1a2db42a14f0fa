// What both kernels of feed-forward networks have in common: GELU and the norm before it, and how they leave rows: what
// they are added to, their sums, and the way to the token buffer.
//
// With C, channels of a row, and what hopper.cuh wants. A panel is 64 rows of 64 channels.

#pragma once

#include "hopper.cuh"

constexpr int STEPS = C / 64;  // panels of rows

// What a thread of a warpgroup holds of products: its upper row, and eight rows further down its lower one; of every
// eight columns two, from `column` on. When a warp stores matrices, each lane names a line of a panel, whose units of 16
// bytes are swizzled by `turn`; lanes 16 to 31 name the second eight columns.
struct Place {
  int warp_row, upper_row, column, lane;
  u32 line, turn;

  __device__ __forceinline__ explicit Place(int member)
      : warp_row(member / 32 * 16), column(member % 4 * 2), lane(member % 32) {
    upper_row = warp_row + lane / 4;
    line = (warp_row + lane / 8 % 2 * 8 + lane % 8) * 128;
    turn = lane % 8 * 16 ^ lane / 16 * 16;
  }
};

// GELU of 2x, as in gelu.py: callers have half of what it is of, which saves a multiplication.
__device__ __forceinline__ float gelu_of_twice(float x) {
#if BRAIN
  float inner = x * (x * x * (8 * 0.035677408136300125f) + 2 * 0.7978845608028654f), tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(inner));
  return x * tanh + x;
#else
  float u = fminf(fmaxf(2 * x, -4.25f), 4.25f), t = u * u;
  float p = t * 6.756170622956859e-11f + -6.328542578870611e-09f;
  p = p * t + 2.6069429281960765e-07f;
  p = p * t + -6.2947760852694046e-06f;
  p = p * t + 0.0001008543258649297f;
  p = p * t + -0.0011573205702006817f;
  p = p * t + 0.009995645843446255f;
  p = p * t + -0.06667200475931168f;
  p = p * t + 0.39911383390426636f;
  return 2 * x * (u * p + 0.5f);
#endif
}

// A row's norm after a product: what sums are multiplied by, and half of column sums, for half of the normed row's.
struct Norm {
  float scale, offset;
};

__device__ __forceinline__ Norm norm_of(const float2 (&sums)[STEPS], float eps) {
  float total = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < STEPS; i++) total += sums[i].x, squares += sums[i].y;
  const float mean = total / C, deviation = rsqrtf(fmaxf(squares / C - mean * mean, 0.f) + eps);
  return {0.5f * deviation, -mean * deviation};
}

// Norm, bias and GELU of two neighbours of a row; of: half of the bias and half of the column sum, of each.
__device__ __forceinline__ u32 activated(const float* two, Norm norm, float4 of) {
  return pack(gelu_of_twice(two[0] * norm.scale + (norm.offset * of.y + of.x)),
              gelu_of_twice(two[1] * norm.scale + (norm.offset * of.w + of.z)));
}

// Two neighbours of a row of a panel, of the eight columns that number `eight` are.
__device__ __forceinline__ u32 two_of(u32 panel, u32 row, int eight, int column) {
  return load1(panel + row * 128 + ((eight * 16 + column * 2) ^ (row % 8 * 16)));
}

// Sum and sum of squares of the upper row (half 0) or the lower one (1), of all that its four threads hold of it.
template <int N>
__device__ __forceinline__ float2 row_sums(const float (&values)[N], int half) {
  float total = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float first = values[i + 2 * half], second = values[i + 2 * half + 1];
    total += first + second;
    squares += first * first + second * second;
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    total += __shfl_xor_sync(~0u, total, lanes);
    squares += __shfl_xor_sync(~0u, squares, lanes);
  }
  return make_float2(total, squares);
}

// 32 values of a thread to a panel; then the warp's rows of it to where they go, -1 if nowhere, lines of 128 bytes.
__device__ __forceinline__ void put_panel(u32 panel, const float* values, const Place& place) {
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    const float* v = values + 4 * i;
    store_matrices(panel + place.line + ((i * 16) ^ place.turn), pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]),
                   pack(v[6], v[7]));
  }
}

template <typename To>
__device__ __forceinline__ void write_panel(u32 panel, u16* out, const Place& place, To to) {
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const u32 row = place.warp_row + k * 4 + place.lane / 8;
    const int there = to(row);
    const float4 eight = load4(panel + row * 128 + (place.lane % 8 * 16 ^ row % 8 * 16));
    if (there >= 0) *(float4*)(out + (long)there * C + place.lane % 8 * 8) = eight;
  }
}
