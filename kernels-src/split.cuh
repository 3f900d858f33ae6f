// Where rows that are split in two bf16 lie for products: high and low parts in rows of their own, or,
// for sm_90a, in the tiles that gemm90.cuh multiplies.
#pragma once
#include "common.cuh"

// PLAIN_ROWS, or tiles whose inputs a lane has by eights or by fours.
enum SplitOrder : u32 { PLAIN_ROWS = 0, EIGHTS = 1, FOURS = 2 };

// The place of elements `e` and `e + 1` of a row, `e` even, in tiles of 64 inputs by 8 rows, of which
// there are `groups` along the rows; the low parts are 512 elements further on. Of 128 inputs an
// instruction takes 16; lane q of four has four of those, which in the row are neighbours: of 4 q .. in
// every 16 (fours), or of 8 q .. in every 32 (narrow). Pieces of 8 are permuted as shared memory wants them.
DEV u64 tile_place(u32 row, u32 e, u32 groups, bool fours) {
  u32 q = fours ? e / 4 % 4 : e / 8 % 4;
  u32 step = fours ? e / 16 % 8 : e / 32 % 4 * 2 + e / 4 % 2;
  u32 at = step * 16 + e % 4 / 2 * 8 + q * 2;
  u32 tile = e / 128 * 2 + at / 64, piece = at / 8 % 8 ^ row % 8;
  return ((u64)tile * groups + row / 8) * 1024 + row % 8 * 64 + piece * 8 + at % 8;
}

// Where a launch leaves its rows as the next product takes them; nowhere if it is null.
struct SplitTiles {
  u16* at;
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
