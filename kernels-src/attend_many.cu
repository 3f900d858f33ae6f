// Attention of a step's rows over caches of halves, on tensor cores: a block for every row; those whose row is
// within the tile of one before end at once.
#include "attend_few.cuh"
#include "attend_many.cuh"

// Warps of a block.
constexpr u32 MANY_TEAM = MANY / M;
// Rows as the launches before have left them, for those behind.
struct Launched {
  const Attend& p;
  u32 rows;
  DEV u32 position(u32 row) const { return cg_u32(p.positions + row); }
  DEV u32 slot(u32 row) const { return cg_u32(p.slots + row); }
  // Queries as two halves each.
  template <class Tile>
  DEV void make(const Tile& t, u32 count) const {
    constexpr u32 PAIRS = Tile::WIDE / 64;
#pragma unroll 4
    for (u32 m = t.warp; m < count; m += Tile::THREADS / 32) {
      u32 r = t.row_of(m), h = m - r * t.group, most = 0;
      const float* from = p.q + (u64)(t.row + r) * p.q_stride + (t.kv * t.group + h) * p.dim;
      float2 x[PAIRS];
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) {
        u32 e = 2 * (k * 32 + t.lane);
        x[k] = r < t.rows && e < p.dim ? __ldcg((const float2*)(from + e)) : make_float2(0, 0);
        most = max(most, max(__float_as_uint(x[k].x) & 0x7fffffffu, __float_as_uint(x[k].y) & 0x7fffffffu));
      }
      float by = t.down(m, __reduce_max_sync(FULL, most), t.lane == 0);
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) {
        u32* to = (u32*)(t.queries + m * Tile::QUERY + 2 * (k * 32 + t.lane));
        u32 w = halves(x[k].x * by, x[k].y * by);
        to[0] = w, to[Tile::WIDE / 2] = rest(x[k].x * by, x[k].y * by, w);
      }
    }
  }
  // All keys and values are in the cache.
  template <class Tile>
  DEV void patch(const Tile&, u32, u32) const {}
};

template <u32 PAIRS>
DEV void attend_many(const Attend& p) {
  extern __shared__ __align__(16) u8 shared[];
  __shared__ float back[MANY];
  pdl_launch_next();
  Launched own = {p, p.rows};
  Many<PAIRS, MANY, MANY_TEAM, Launched> many(p, own, (u16*)shared, back, blockIdx.x, blockIdx.y);
  bool begins = many.begins();
  pdl_wait();
  if (begins) many.run();
}

#define ENTRY(PAIRS) \
  KERNEL __launch_bounds__(32 * MANY_TEAM) attend_many_##PAIRS(const __grid_constant__ Attend p) { attend_many<PAIRS>(p); }
ENTRY(1)
ENTRY(2)
ENTRY(4)

#if HOPPER
// By the warps of a block.
#define FEW(PAIRS, TEAM)                                                                                          \
  KERNEL __launch_bounds__(32 * TEAM, 2) attend_few_##PAIRS##_##TEAM(const __grid_constant__ AttendFew p) {        \
    attend_few<PAIRS, TEAM>(p);                                                                                     \
  }
FEW(1, 4)
FEW(1, 8)
FEW(2, 4)
FEW(2, 8)
#endif
