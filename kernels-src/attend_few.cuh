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

#if HOPPER
struct AttendFew {
  Attend many;
  Heads q, k, v;
};
static_assert(sizeof(AttendFew) == 320, "src/cuda/abi.rs mirrors it");

// Rows of a tile.
constexpr u32 FEW = 8;
// Of the step's rows, of which there are no more than lanes.
struct StepRows {
  u32 positions[32], slots[32];
};
DEV u32 greatest(const float4& v) {
  auto size = [](float x) { return __float_as_uint(x) & 0x7fffffffu; };
  return max(max(size(v.x), size(v.y)), max(size(v.z), size(v.w)));
}

template <u32 PAIRS, u32 TEAM>
struct MakesHeads {
  static constexpr u32 WIDE = 64 * PAIRS;
  typedef Many<PAIRS, FEW, TEAM, MakesHeads> Tile;
  // What a block has beside its tile: keys and values of this step's rows, as many as there is `room` for.
  DEV u32 beside() const { return p.many.room * 2 * WIDE * 2; }
  const AttendFew& p;
  const StepRows& where;
  u32 rows;
  u16* made;

  DEV MakesHeads(const AttendFew& p, const StepRows& where, u8* shared)
      : p(p), where(where), rows(p.many.rows), made((u16*)shared) {}
  DEV u32 position(u32 row) const { return where.positions[row]; }
  DEV u32 slot(u32 row) const { return where.slots[row]; }

  // Four elements from `first` on and four from `second`, of a lane of half a warp: of what turns by halves they belong together.
  struct Head {
    float4 a, b;
    u32 first, second;
  };
  // Makes a head for each half of a warp; both go the same way.
  DEV Head make_head(const Heads& h, u32 row, u32 head, bool on) const {
    u32 t = threadIdx.x % 16, dim = p.many.dim, half = h.turn / 2;
    bool turns = 4 * t < half;
    Head to;
    to.first = turns ? 4 * t : 8 * t, to.second = to.first + (turns ? half : 4);
    on = on && 8 * t < dim;
    // What is known before the numbers are.
    float4 bias[2], turn[2];
    if (on && turns) {
      const float2* by = h.turns + (u64)where.positions[row] * half;
      turn[0] = *(const float4*)(by + (h.halves ? to.first : to.first / 2));
      turn[1] = *(const float4*)(by + (h.halves ? to.first + 2 : to.second / 2));
    }
    if (on && h.bias)
      bias[0] = *(const float4*)(h.bias + head * dim + to.first), bias[1] = *(const float4*)(h.bias + head * dim + to.second);
    pdl_wait();
    const float* raw = h.raw + (u64)row * h.stride + head * dim;
    float4 a = on ? cg_f32x4(raw + to.first) : float4{}, b = on ? cg_f32x4(raw + to.second) : float4{};
    if (on && h.bias) a = plus(a, bias[0]), b = plus(b, bias[1]);
    to.a = a, to.b = b;
    if (on && turns) {
      auto pair = [](float& first, float& second, float c, float s) {
        float v = first, w = second;
        first = turned_first(v, w, make_float2(c, s)), second = turned_second(v, w, make_float2(c, s));
      };
      if (h.halves) {
        pair(to.a.x, to.b.x, turn[0].x, turn[0].y), pair(to.a.y, to.b.y, turn[0].z, turn[0].w);
        pair(to.a.z, to.b.z, turn[1].x, turn[1].y), pair(to.a.w, to.b.w, turn[1].z, turn[1].w);
      } else {
        pair(to.a.x, to.a.y, turn[0].x, turn[0].y), pair(to.a.z, to.a.w, turn[0].z, turn[0].w);
        pair(to.b.x, to.b.y, turn[1].x, turn[1].y), pair(to.b.z, to.b.w, turn[1].z, turn[1].w);
      }
    }
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
      u32 most = max(greatest(head.a), greatest(head.b));
#pragma unroll
      for (u32 o = 1; o < 16; o *= 2) most = max(most, __shfl_xor_sync(FULL, most, o));
      float by = query ? t.down(job, most, t.lane % 16 == 0) : 1.0f;
      if (!on) continue;
      // Each row is written by the block that has its tile.
      u16* cache = (u16*)(kept % 2 ? p.many.values : p.many.keys) + t.cache + (u64)position(row) * dim;
      u16* to = query ? t.queries + job * Tile::QUERY : made + (row * 2 + kept % 2) * WIDE;
#pragma unroll
      for (u32 k = 0; k < 2; k++) {
        u32 e = k ? head.second : head.first;
        if (e >= WIDE) continue;
        float4 v = times(k ? head.b : head.a, by);
        uint2 w = make_uint2(halves(v.x, v.y), halves(v.z, v.w));
        *(uint2*)(to + e) = w;
        if (query) *(uint2*)(to + WIDE + e) = make_uint2(rest(v.x, v.y, w.x), rest(v.z, v.w, w.y));
        else if (row - t.row < t.rows && e < dim) *(uint2*)(cache + e) = w;
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

template <u32 PAIRS, u32 TEAM>
DEV void attend_few(const AttendFew& p) {
  extern __shared__ __align__(16) u8 shared[];
  __shared__ float back[FEW];
  __shared__ StepRows where;
  pdl_launch_next();
  if (threadIdx.x < p.many.rows)
    where.positions[threadIdx.x] = cg_u32(p.many.positions + threadIdx.x),
    where.slots[threadIdx.x] = cg_u32(p.many.slots + threadIdx.x);
  __syncthreads();
  MakesHeads<PAIRS, TEAM> own(p, where, shared);
  u16* room = (u16*)(shared + own.beside());
  typename MakesHeads<PAIRS, TEAM>::Tile tile(p.many, own, room, back, blockIdx.x, blockIdx.y);
  if (tile.begins()) tile.run();
  pdl_wait();
}
#endif
