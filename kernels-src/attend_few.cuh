// Attention of two to 32 rows that makes their heads itself.
//
// A block has a tile of rows and a key head, as in attend_many.cuh. Keys and values of this step's rows in the tile's slot are
// made by the block itself, whichever block writes them to the cache, and laid over what the cache has in their place:
// so nobody waits for the cache, and most of it is asked for before the kernel waits. The rounding of a rotation is that of a
// list of rows, which makes heads for steps of more rows; a norm's order of sums is a list's only where that has one head a
// block, so heads with norms do not come here yet.
#pragma once
#include "attend_many.cuh"
#include "heads.cuh"
#include "square.cuh"

#if HOPPER
struct AttendFew {
  Attend many;
  Heads q, k, v;
};
static_assert(sizeof(AttendFew) == 320, "src/cuda/abi.rs mirrors it");

// Of the step's rows, of which there are no more than lanes.
struct StepRows {
  u32 positions[32], slots[32];
};

template <u32 PAIRS>
struct MakesHeads {
  static constexpr u32 WIDE = 64 * PAIRS;
  typedef Many<PAIRS, M, MakesHeads> Tile;
  // What a block has beside its tile: heads that turn, of each half of a warp; keys and values of this step's rows, as many as
  // there is `room` for.
  static constexpr u32 STAGE = TEAM * 2 * WIDE * 4;
  DEV u32 beside() const { return STAGE + p.many.room * 2 * WIDE * 2; }
  const AttendFew& p;
  const StepRows& where;
  u32 rows;
  float* stage;
  u16* made;

  DEV MakesHeads(const AttendFew& p, const StepRows& where, u8* shared)
      : p(p), where(where), rows(p.many.rows), stage((float*)shared), made((u16*)(shared + STAGE)) {}
  DEV u32 position(u32 row) const { return where.positions[row]; }
  DEV u32 slot(u32 row) const { return where.slots[row]; }

  // Four elements from e on, and four 16 further, of lane t of half a warp: e is 32 (t / 4) + 4 (t % 4).
  struct Head {
    float4 v[2];
    u32 e;
  };
  // Makes a head for each half of a warp; both go the same way.
  DEV Head make_head(const Heads& h, u32 row, u32 head, bool on) const {
    Head to;
    u32 t = threadIdx.x % 16, dim = p.many.dim, half = h.turn / 2;
    u32 e0 = to.e = t / 4 * 32 + t % 4 * 4;
    bool in[2] = {on && e0 < dim, on && e0 + 16 < dim};
    // What is known before the numbers are.
    float4 bias[2], weight[2];
    float2 turn[8];
#pragma unroll
    for (u32 k = 0; k < 2; k++) {
      u32 e = e0 + 16 * k;
      bias[k] = in[k] && h.bias ? *(const float4*)(h.bias + head * dim + e) : make_float4(0, 0, 0, 0);
      weight[k] = in[k] && h.norm ? *(const float4*)(h.norm + e) : make_float4(1, 1, 1, 1);
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        u32 pair = h.halves ? (e + i < half ? e + i : e + i - half) : (e + i) / 2;
        turn[4 * k + i] = in[k] && e + i < h.turn ? h.turns[(u64)where.positions[row] * half + pair] : make_float2(1, 0);
      }
    }
    const float* raw = h.raw + (u64)row * h.stride + head * dim + e0;
    pdl_wait();
#pragma unroll
    for (u32 k = 0; k < 2; k++) to.v[k] = in[k] ? cg_f32x4(raw + k * 16) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (u32 k = 0; k < 2; k++)
      if (h.bias) to.v[k] = make_float4(to.v[k].x + bias[k].x, to.v[k].y + bias[k].y, to.v[k].z + bias[k].z, to.v[k].w + bias[k].w);
    float scale = 1.0f;
    // Of all or of none, so that lanes stay together.
    if (p.q.norm || p.k.norm || p.v.norm) {
      float sum = sum_of_lanes(squares_of(to.v[0]) + squares_of(to.v[1]), 4, 8);
      sum = sum_of_lanes(sum, 1, 2);
      scale = norm_scale(sum, dim, h.eps);
    }
    float* mine = stage + threadIdx.x / 16 * WIDE;
#pragma unroll
    for (u32 k = 0; k < 2; k++) {
      if (h.norm) to.v[k] = normed(to.v[k], scale, weight[k]);
      if (in[k]) *(float4*)(mine + e0 + k * 16) = to.v[k];
    }
    __syncwarp();
#pragma unroll
    for (u32 k = 0; k < 2; k++) {
      float x[4] = {to.v[k].x, to.v[k].y, to.v[k].z, to.v[k].w};
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        u32 e = e0 + 16 * k + i;
        if (!in[k] || e >= h.turn) continue;
        bool first = h.halves ? e < half : e % 2 == 0;
        u32 away = h.halves ? half : 1;
        float other = mine[first ? e + away : e - away];
        float2 by = turn[4 * k + i];
        x[i] = first ? turned_first(x[i], other, by) : turned_second(other, x[i], by);
      }
      to.v[k] = make_float4(x[0], x[1], x[2], x[3]);
    }
    __syncwarp();
    return to;
  }

  // The rows in a tile's slot.
  DEV u32 slotted_of(const Tile& t) const { return __ballot_sync(FULL, t.lane < rows && slot(t.lane) == t.slot); }

  // Heads of the tile, and keys and values of all rows in its slot.
  DEV void make(const Tile& t, u32 count) const {
    u32 jobs = t.rows * t.group, dim = p.many.dim, slotted = slotted_of(t);
    // What a tile is filled up with.
    for (u32 i = threadIdx.x; i < (count - jobs) * (Tile::QUERY / 8); i += Tile::THREADS)
      *(uint4*)(t.queries + jobs * Tile::QUERY + i * 8) = make_uint4(0, 0, 0, 0);
    if (threadIdx.x >= jobs && threadIdx.x < count) t.down(threadIdx.x, 0, true);
    u32 all = jobs + 2 * __popc(slotted);
#pragma unroll 1
    for (u32 from = t.warp * 2; from < all; from += TEAM * 2) {
      u32 job = from + t.lane / 16, r = t.row_of(job), kept = job - jobs;
      bool on = job < all, query = job < jobs;
      // Of the rows in the slot the next but so many.
      u32 left = slotted;
#pragma unroll 1
      for (u32 i = 0; on && !query && i < kept / 2; i++) left &= left - 1;
      u32 row = query ? t.row + r : __ffs(left) - 1;
      const Heads& of = query ? p.q : kept % 2 ? p.v : p.k;
      Head head = make_head(of, row, query ? t.kv * t.group + job - r * t.group : t.kv / p.many.share, on);
      u32 most = 0;
      float x[8] = {head.v[0].x, head.v[0].y, head.v[0].z, head.v[0].w, head.v[1].x, head.v[1].y, head.v[1].z, head.v[1].w};
#pragma unroll
      for (u32 i = 0; i < 8; i++) most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
#pragma unroll
      for (u32 o = 1; o < 16; o *= 2) most = max(most, __shfl_xor_sync(FULL, most, o));
      float by = query ? t.down(job, most, t.lane % 16 == 0) : 1.0f;
#pragma unroll
      for (u32 k = 0; k < 2; k++) {
        u32 e = head.e + 16 * k;
        if (!on || e >= WIDE) continue;
        float a = x[4 * k] * by, b = x[4 * k + 1] * by, c = x[4 * k + 2] * by, d = x[4 * k + 3] * by;
        uint2 w = make_uint2(halves(a, b), halves(c, d));
        if (query) {
          u16* to = t.queries + job * Tile::QUERY + e;
          *(uint2*)to = w, *(uint2*)(to + WIDE) = make_uint2(rest(a, b, w.x), rest(c, d, w.y));
          continue;
        }
        *(uint2*)(made + (row * 2 + kept % 2) * WIDE + e) = w;
        // Each row is written by the block that has its tile.
        u16* cache = (u16*)(kept % 2 ? p.many.values : p.many.keys) + t.cache + (u64)position(row) * dim;
        if (row - t.row < t.rows && e < dim) *(uint2*)(cache + e) = w;
      }
    }
  }
  // Keys and values of this step, where the cache may not have them yet: of a warp's chunk.
  DEV void patch(const Tile& t, u32 c, u32 buffer) const {
    constexpr u32 PIECES = WIDE / 8;
#pragma unroll 1
    for (u32 left = slotted_of(t); left; left &= left - 1) {
      u32 row = __ffs(left) - 1, which = t.lane / PIECES, piece = t.lane % PIECES * 8, at = position(row);
      if (at < t.first(t.position) || at >= t.position + t.rows || at / CHUNK != c || which >= 2) continue;
      u16* to = t.tiles + ((2 * buffer + which) * CHUNK + at % CHUNK) * Tile::LINE + piece;
      *(uint4*)to = *(const uint4*)(made + (row * 2 + which) * WIDE + piece);
    }
  }
};

template <u32 PAIRS>
DEV void attend_few(const AttendFew& p) {
  extern __shared__ __align__(16) u8 shared[];
  __shared__ float back[M];
  __shared__ StepRows where;
  pdl_launch_next();
  if (threadIdx.x < p.many.rows)
    where.positions[threadIdx.x] = cg_u32(p.many.positions + threadIdx.x),
    where.slots[threadIdx.x] = cg_u32(p.many.slots + threadIdx.x);
  __syncthreads();
  MakesHeads<PAIRS> own(p, where, shared);
  u16* room = (u16*)(shared + own.beside());
  typename MakesHeads<PAIRS>::Tile tile(p.many, own, room, back, blockIdx.x, blockIdx.y);
  if (tile.begins()) tile.run();
  pdl_wait();
}
#endif
