// Where rows that are split in two bf16 lie for products: high and low parts in rows of their own, or,
// for sm_90a, in the tiles that gemm90.cuh multiplies.
#pragma once
#include "common.cuh"

// PLAIN_ROWS, or tiles whose inputs a lane has by eights or by fours.
enum SplitOrder : u32 { PLAIN_ROWS = 0, EIGHTS = 1, FOURS = 2 };

// The place of elements `e` and `e + 1` of a row, `e` even, in tiles of 64 inputs by 8 rows, of which
// there are `groups` along the rows; the low parts are 512 elements further on. Of 128 inputs an
// instruction takes 16; lane q of four has four of those, which in the row are neighbours: of 4 q .. in
// every 16 (fours), or of 8 q .. in every 32 (eights). Pieces of 8 are permuted as shared memory wants them.
DEV u64 tile_place(u32 row, u32 e, u32 groups, bool fours) {
  u32 q = fours ? e / 4 % 4 : e / 8 % 4;
  u32 step = fours ? e / 16 % 8 : e / 32 % 4 * 2 + e / 4 % 2;
  u32 at = step * 16 + e % 4 / 2 * 8 + q * 2;
  u32 tile = e / 128 * 2 + at / 64, piece = at / 8 % 8 ^ row % 8;
  return ((u64)tile * groups + row / 8) * 1024 + row % 8 * 64 + piece * 8 + at % 8;
}

// Sums of a row over the 32 inputs of a unit of planes, for what is added to weights: of each block of 128 inputs and each group
// of rows `[all|first half][row][unit]`, two bf16 that add up to the sum. A matrix of 8 rows and 8 bf16 is as the tensor
// cores read them.
constexpr u32 SUMS = 256;

// Where a launch leaves its rows as the next product takes them, and their sums; nowhere if they are null.
struct SplitTiles {
  u16* at;
  u8* sums;
  u32 groups, order;
};
// The low parts of what the high parts leave of a pair. What is left of infinity is not a number, and nothing is
// left of NaN but itself.
DEV u32 low_parts(float v, float w, u32 high) { return bf16x2(v - bf16_low(high), w - bf16_high(high)); }
// Elements `e` and `e + 1` of a row.
DEV void leave_split(const SplitTiles& to, u32 row, u32 e, float v, float w) {
  u32 high = bf16x2(v, w);
  u16* at = to.at + tile_place(row, e, to.groups, to.order == FOURS);
  *(u32*)at = high;
  *(u32*)(at + 512) = low_parts(v, w, high);
}
// Four elements from `e`, a multiple of four: the second pair lies in the piece beside the first one's.
DEV void leave_four(const SplitTiles& to, u32 row, u32 e, float4 v) {
  u64 place = tile_place(row, e, to.groups, to.order == FOURS);
  u32 high = bf16x2(v.x, v.y), next = bf16x2(v.z, v.w);
  u16 *at = to.at + place, *beside = to.at + (place ^ 8);
  *(u32*)at = high, *(u32*)(at + 512) = low_parts(v.x, v.y, high);
  *(u32*)beside = next, *(u32*)(beside + 512) = low_parts(v.z, v.w, next);
}
// A number as two bf16 that add up to it, in a word.
DEV u32 two_of(float v) { return bf16x2(v, v - bf16_low(bf16x2(v, v))); }
// What a unit's first 16 inputs and the others come to. Whoever makes them adds neighbours up, then neighbouring sums, and so on.
DEV void leave_sums(const SplitTiles& to, u32 row, u32 unit, float first, float second) {
  u32* at = (u32*)(to.sums + ((u64)(unit / 4) * to.groups + row / 8) * SUMS) + row % 8 * 4 + unit % 4;
  at[0] = two_of(first + second), at[SUMS / 8] = two_of(first);
}
// Adds up what so many lanes in a row have, of those that are here.
template <u32 COUNT>
DEV float sum_of_next(float v, u32 here) {
#pragma unroll
  for (u32 o = 1; o < COUNT; o *= 2) v += __shfl_xor_sync(here, v, o);
  return v;
}
// Of columns from `col`, whose sum is `sum`; COUNT lanes in a row have 16.
template <u32 COUNT>
DEV void leave_sums_of(const SplitTiles& to, u32 row, u32 col, float sum, u32 here) {
  sum = sum_of_next<COUNT>(sum, here);
  float other = __shfl_xor_sync(here, sum, COUNT);
  if (col % 32 == 0) leave_sums(to, row, col / 32, sum, other);
}
