// What attention over the caches of a step's rows is given.
#pragma once
#include "split.cuh"

// Positions of a chunk.
constexpr u32 CHUNK = 64;

struct Attend {
  const float* q;
  float* out;
  const u16 *keys, *values;
  // Null where keys and values are halves.
  const u16 *key_scales, *value_scales;
  const u32 *positions, *slots;
  // Of each (row, query head, chunk): the values' sums, then maximum and sum of the weights.
  float* partial;
  u32* arrived;
  // A score for each head that has no value; null for none.
  const float* sinks;
  u32 q_stride, out_stride, heads, kv_heads, dim, context, window, chunks;
  float scale, softcap;
  // Whether chunks are spread over blocks. Then there is one row.
  u32 split;
  // Greatest exponent of ALiBi's slopes, 0 for none.
  float alibi;
  // How many of `kv_heads` are one in the cache: parts of a group that no block holds whole.
  u32 share;
  // Rows of the step, chunks on their way, and how many there is room for.
  u32 rows, buffers, room;
  // Rows for the next product; with that `out` may be null.
  SplitTiles left;
};
static_assert(sizeof(Attend) == 176, "src/cuda/abi.rs mirrors it");
