// Rows on their way to a product of several: read as they are, through a norm, split, and laid where lanes take them.
#pragma once
#include "fresh.cuh"
#include "split.cuh"
#include "square.cuh"

#if HOPPER
// Blocks of columns of a warp at a time, and bytes of one as the tensor cores take it.
constexpr u32 AT_A_TIME = 2, BLOCK_BYTES = 4096;

// Numbers of two blocks of columns, or of one twice, on their way to a warp: of lane (g, c) four of row g, every 16 from 4 c.
// Of rows that are not there nobody looks at what comes of them: they are the last one again.
struct Numbers {
  float4 v[AT_A_TIME][8];
  const float* from;
  bool polls;
  template <class Product>
  DEV Numbers(const Product& p, u32 rows, u32 lane, bool polls)
      : from(p.x + (u64)min(lane / 4, rows - 1) * p.stride + lane % 4 * 4), polls(polls) {}
  DEV const float* at(u32 k, u32 block, bool two) const { return from + (block + (k / 8 && two)) * 128 + k % 8 * 16; }
  DEV void ask(u32 block, bool two) {
#pragma unroll
    for (u32 k = 0; k < 8 * AT_A_TIME; k++) v[k / 8][k % 8] = fresh_f32x4(at(k, block, two));
  }
  // Until all are there. `nan` says whether some may not be: nobody's number is none.
  template <class Nan>
  DEV void settle(u32 block, bool two, Nan nan) {
    for (bool watched = false; __any_sync(FULL, nan()); watched = true) {
      bool there = true;
      if (!watched) watch(at(0, block, two));
#pragma unroll
      for (u32 k = 0; k < 8 * AT_A_TIME; k++) {
        float4& f = v[k / 8][k % 8];
        if (!is_nobody(f)) continue;
        there = false;
        f = fresh_f32x4(at(k, block, two));
      }
      if (__all_sync(FULL, there)) return;
    }
  }
  DEV void settle(u32 block, bool two) {
    if (!polls) return;
    settle(block, two, [&]() {
      float sum = 0;
#pragma unroll
      for (u32 k = 0; k < 8 * AT_A_TIME; k++) {
        const float4& f = v[k / 8][k % 8];
        sum += (f.x + f.y) + (f.z + f.w);
      }
      return sum != sum;
    });
  }
};
// A norm's weights of as many columns go to shared memory at `to`.
template <class Product>
DEV void ask_norm(const Product& p, u32 to, u32 block, bool two, u32 lane) {
#pragma unroll
  for (u32 k = 0; k < AT_A_TIME; k++)
    if (k == 0 || two) async_copy(to + (k * 128 + lane * 4) * 4, p.norm + (block + k) * 128 + lane * 4);
}
DEV void norm_is_there() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
}
// Splits numbers of a block, and lays them where the lanes take them that multiply.
template <bool FOURS>
DEV void lay_block(const float4 (&v)[8], u32 to, u32 lane) {
  u32 g = lane / 4, c = lane % 4;
  u32 at = to + g * 64 + (FOURS ? 0 : c % 2 * 512 + (c / 2 ^ c % 2) * 16);
#pragma unroll
  for (u32 m = 0; m < 8; m++) {
    u32 h0 = bf16x2(v[m].x, v[m].y), h1 = bf16x2(v[m].z, v[m].w);
    u32 l0 = low_parts(v[m].x, v[m].y, h0), l1 = low_parts(v[m].z, v[m].w, h1);
    // Instruction i and lane (g, q ^ i % 4), with q = c and i = m, or q = m % 2 * 2 + c / 2 and i = m / 2 * 2 + c % 2.
    u32 there = FOURS ? at + m * 512 + (c ^ m % 4) * 16 : at + m / 2 * 1024 + (m % 2 ^ m / 2 % 2) * 32;
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(there), "r"(h0), "r"(h1), "r"(l0), "r"(l1) : "memory");
  }
}
// The sums of a block's units (split.cuh): lane (g, c) leaves those of unit c.
DEV void lay_sums(const float4 (&v)[8], u32 to, u32 lane) {
  float first = 0, all = 0;
#pragma unroll
  for (u32 unit = 0; unit < 4; unit++) {
    auto half = [&](const float4& f) { return sum_of_next<4>((f.x + f.y) + (f.z + f.w), FULL); };
    float a = half(v[2 * unit]), b = half(v[2 * unit + 1]);
    if (lane % 4 == unit) first = a, all = a + b;
  }
  to += lane * 4;
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(two_of(all)) : "memory");
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + SUMS / 2), "r"(two_of(first)) : "memory");
}
#endif
