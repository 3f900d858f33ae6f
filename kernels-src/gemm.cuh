// What a product of many rows is given.
#pragma once
#include "split.cuh"
#include "square.cuh"
#include "units.cuh"

struct Gemm {
  const u16 *high, *low;
  // Sums of rows on sm_90a, where something is added to weights; else null.
  const u8* sums;
  u32 rows, stride, domains;
  // On sm_90a (gemm90.cuh): groups of eight rows that the tiles have room for, rows of a tile, stages of
  // the ring, stretches of inputs in all and of a block, and a zero.
  u32 groups, tile, stages, stretches, each, zero;
  // Tiles before each domain; the last entry counts all.
  u32 first[MAX_DOMAINS + 1];
  Domain domain[MAX_DOMAINS];
  Matrix part[2 * MAX_DOMAINS];
  // Of the only domain, which has a straight line; then it may leave no plain rows.
  SplitTiles left;
  // Squares of rows (square.cuh), whose norm's factor is for the sums; null if there is none. What is left is multiplied by
  // the weights of a norm, null for none, and its squares are left, too.
  const float *squares, *norm;
  float* left_squares;
  float eps;
  // With few rows (few90.cuh): pages of weights of a warp, and bytes of a panel's span in them.
  u32 pages, page;
  // Where rows picked experts: how many each, and of how many; the tiles and pairs that picks.cuh says. Null if none did.
  u32 picks, experts, unused;
  const uint4* tiles;
  const u32* pairs;
};
static_assert(sizeof(Gemm) == 2856, "src/cuda/abi.rs mirrors it");
