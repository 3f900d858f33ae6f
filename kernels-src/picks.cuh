// Picks of a step sorted by expert, so that rows that picked the same one are neighbours and meet its weights together.
//
// A *pair* is a row and one of its picks. It has a place among split rows; places of an expert begin at a group of eight rows.
// A tile is up to so many places in a row of the same expert: what a block of a product of many rows takes.
#pragma once
#include "common.cuh"

struct Picks {
  const u32* ids;
  // Each tile's expert, first place and rows (`Batch` of finish.cuh); of each place its pair, of each pair its place.
  uint4* tiles;
  u32 *pairs, *places;
  u32 id_row, picks, experts, rows;
  // Places of a tile, and how many tiles there may be: the others have no rows.
  u32 tile, most;
};
static_assert(sizeof(Picks) == 56, "src/cuda/abi.rs mirrors it");

// In a pair's place: its pick names no expert, and what it is multiplied with are zeros.
constexpr u32 NO_EXPERT = 1u << 31;

#if HOPPER
constexpr u32 SORTERS = 1024;

DEV void sort_picks_of(const Picks& p) {
  // Of each expert, and of picks that name none: pairs, then the first place; and the sums of warps.
  extern __shared__ u32 of_expert[];
  __shared__ u32 places_of[32], tiles_of[32];
  u32 t = threadIdx.x, warp = t / 32, lane = t % 32, pairs = p.rows * p.picks;
  auto picked = [&](u32 pair) { return min(cg_u32(p.ids + (u64)(pair / p.picks) * p.id_row + pair % p.picks), p.experts); };
  for (u32 e = t; e <= p.experts; e += SORTERS) of_expert[e] = 0;
  __syncthreads();
  pdl_launch_next();
  pdl_wait();
  // In which order pairs of an expert come decides no number.
  for (u32 pair = t; pair < pairs; pair += SORTERS) p.places[pair] = atomicAdd(of_expert + picked(pair), 1u);
  __syncthreads();
  u32 place = 0, tile = 0;
#pragma unroll 1
  for (u32 first = 0; first <= p.experts; first += SORTERS) {
    u32 e = first + t, count = e <= p.experts ? of_expert[e] : 0;
    u32 room = (count + 7) / 8 * 8, tiles = (count + p.tile - 1) / p.tile, rooms = room, all = tiles;
    // Sums up to here: over a warp, then over the warps before.
#pragma unroll
    for (u32 o = 1; o < 32; o *= 2) {
      u32 r = __shfl_up_sync(FULL, rooms, o), a = __shfl_up_sync(FULL, all, o);
      if (lane >= o) rooms += r, all += a;
    }
    if (lane == 31) places_of[warp] = rooms, tiles_of[warp] = all;
    __syncthreads();
    u32 at = place + rooms - room, to = tile + all - tiles;
#pragma unroll 1
    for (u32 w = 0; w < 32; w++) {
      if (w < warp) at += places_of[w], to += tiles_of[w];
      place += places_of[w], tile += tiles_of[w];
    }
    if (e <= p.experts) of_expert[e] = at;
    for (u32 i = 0; i < tiles; i++)
      p.tiles[to + i] = make_uint4(min(e, p.experts - 1), at + i * p.tile, min(p.tile, count - i * p.tile), 0);
    __syncthreads();
  }
  for (u32 i = tile + t; i < p.most; i += SORTERS) p.tiles[i] = make_uint4(0, 0, 0, 0);
  for (u32 pair = t; pair < pairs; pair += SORTERS) {
    u32 e = picked(pair), at = of_expert[e] + p.places[pair];
    p.pairs[at] = pair, p.places[pair] = at | (e < p.experts ? 0 : NO_EXPERT);
  }
}
#endif
