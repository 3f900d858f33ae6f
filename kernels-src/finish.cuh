// What becomes of a tile's sums on sm_90a, once they are in shared memory.
#pragma once
#include "gemm.cuh"
#include "wgmma.cuh"

#if HOPPER
// A tile: what it multiplies with, and what becomes of it.
struct Tile {
  u32 domain, first, outputs;
};
template <class P>
DEV Tile tile_of(const P& p, u32 tile) {
  Tile t;
  t.domain = 0;
  while (t.domain + 1 < p.domains && tile >= p.first[t.domain + 1]) t.domain++;
  const Domain& d = p.domain[t.domain];
  t.first = (tile - p.first[t.domain]) * (WG_M / d.parts);
  t.outputs = tile < p.first[p.domains] ? p.part[d.part[0]].rows : 0;
  return t;
}

// The rows of a block: whose matrix of each part they are multiplied with, the first of them, how many. Where they PICKED experts the
// launches before say so.
struct Batch {
  u32 expert, first, rows;
};
template <u32 N, bool PICKED>
DEV Batch batch_of(const Gemm& p) {
  u32 first = blockIdx.x * N;
  if constexpr (!PICKED) return {0, first, min(N, p.rows - first)};
  uint4 tile = cg_u32x4(p.tiles + blockIdx.x);
  return {tile.x, tile.y, tile.z};
}

// Adds up ALL of them, from where this block's share of rows begins.
template <u32 ALL>
DEV void add_up_of(u32 sums, u32 width, u32 most, u32 rows, u32 rank, u32 splits, u32 each, u32 t, u32 threads) {
  u32 by = log_of(splits), several = log_of(each), quads = log_of((width - 4) / 4);
  u32 mine = rows <= rank ? 0 : (rows - rank + splits - 1) >> by << quads, next = most * width * 4;
#pragma unroll 2
  for (u32 i = t; i < mine; i += threads) {
    u32 at = sums + ((rank + (i >> quads << by)) * width + (i & (1 << quads) - 1) * 4) * 4;
    float4 v[ALL];
#pragma unroll
    for (u32 s = 0; s < ALL; s++) v[s] = cluster_read(at + (s & each - 1) * next, s >> several);
    // The first half in order, the second half in order, then both: as blocks do that have half each.
    float4 sum = v[0], second = v[ALL / 2];
#pragma unroll
    for (u32 s = 1; s < ALL / 2; s++) sum = plus(sum, v[s]), second = plus(second, v[ALL / 2 + s]);
    sum = plus(sum, second);
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at), "f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w)
                 : "memory");
  }
}

// Adds up what the blocks of a cluster have, `each` times `most` rows of sums, in place: each block its share of the rows.
DEV void add_up(u32 sums, u32 width, u32 most, u32 rows, u32 rank, u32 splits, u32 each, u32 t, u32 threads) {
  switch (splits * each) {
    case 2: return add_up_of<2>(sums, width, most, rows, rank, splits, each, t, threads);
    case 4: return add_up_of<4>(sums, width, most, rows, rank, splits, each, t, threads);
    default: add_up_of<8>(sums, width, most, rows, rank, splits, each, t, threads);
  }
}

// One tile's elements in a block: rows `rank`, `rank + splits` .. of the block's, dealt out over the threads
// of a warpgroup.
struct Share {
  Tile tile;
  // First row of all, rows of the block, this block of so many that share them, as a power of two; thread.
  u32 m0, rows, rank, by, t;
  DEV u32 count() const { return rows <= rank || tile.first >= tile.outputs ? 0 : (rows - rank - 1 >> by) + 1; }
  // Where the `n`th row's outputs go.
  template <bool PICKED>
  DEV u32 row(const Gemm& p, u32 n) const {
    if constexpr (PICKED) return cg_u32(p.pairs + m0 + n);
    return m0 + n;
  }
};

// The factors of the norm of a block's rows, or of its share of them: made of squares, eight threads a row.
template <u32 N>
struct Factors {
  static constexpr u32 MOST = N > 64 ? 4 : N > 8 ? 2 : 1;
  const Gemm& p;
  const Share& share;
  float4 v[MOST];
  DEV u32 row(u32 k) const { return share.rank + ((threadIdx.x + k * blockDim.x) / 8 << share.by); }
  DEV const float* from(u32 k) const {
    return p.squares + (u64)(share.m0 + row(k)) * squares_stride(p.stride / SQUARED) + threadIdx.x % 8 * 4;
  }
  DEV void ask() {
#pragma unroll
    for (u32 k = 0; k < MOST; k++)
      v[k] = row(k) < share.rows && threadIdx.x % 8 * 4 < p.stride / SQUARED ? cg_f32x4(from(k)) : float4{};
  }
  DEV void make(float* to) const {
#pragma unroll
    for (u32 k = 0; k < MOST; k++) {
      if (row(k) >= share.rows) continue;
      u32 at = threadIdx.x % 8 * 4, all = p.stride / SQUARED, here = 0xffu << (threadIdx.x & 24);
      // Of 128 columns at a time.
      auto four = [&](float4 v) { return (v.x + v.y) + (at + 2 < all ? v.z + v.w : 0.0f); };
      float sum = four(v[k]);
#pragma unroll 1
      for (u32 i = 32; at + 32 < all; i += 32) at += 32, sum += four(cg_f32x4(from(k) + i));
      sum += __shfl_xor_sync(here, sum, 4);
      sum = sum_of_lanes(sum, 1, 2, here);
      if (threadIdx.x % 8 == 0) to[row(k)] = norm_factor(sum, p.stride, p.eps);
    }
  }
};

// Whether four columns can be done at once: they lie well, and nothing but a line is to do.
DEV bool by_fours(const Epilogue& e, const Tile& tile, u32 columns) {
  if (e.form != STORE && e.form != RESIDUAL && e.form != GATED) return false;
  u64 all = (u64)e.out | e.out_stride * 4;
  if (e.form == RESIDUAL) all |= (u64)e.residual.at | (e.residual.where == ROWS ? e.residual.n * 4 : 0);
  return all % 16 == 0 && tile.outputs % 4 == 0 && tile.first + columns <= tile.outputs;
}

// Fours of a residual, asked for at once.
constexpr u32 AT_ONCE = 4;
struct Residuals {
  float4 v[AT_ONCE];
};
DEV void ask(Residuals& r, const Epilogue& e, const Share& s, u32 quads, u32 i0) {
#pragma unroll
  for (u32 k = 0; k < AT_ONCE; k++) {
    u32 i = i0 + k * 128, n = s.rank + (i >> quads << s.by);
    if (i >= s.count() << quads) continue;
    u64 row = e.residual.where == ROWS ? (u64)(s.m0 + n) * e.residual.n : 0;
    r.v[k] = cg_f32x4(e.residual.at + row + s.tile.first + (i & (1 << quads) - 1) * 4);
  }
}
// Fours of a tile's row, as a power of two.
DEV u32 quads_of(const Domain& d) { return d.parts == 1 ? 4 : 3; }

// What can be asked for before the sums are there.
DEV void ask_early(Residuals& r, const Gemm& p, const Share& s) {
  const Domain& d = p.domain[s.tile.domain];
  u32 quads = quads_of(d);
  if (d.epilogue.form == RESIDUAL && by_fours(d.epilogue, s.tile, 4 << quads)) ask(r, d.epilogue, s, quads, s.t);
}

// `sums` begins with the tile's first column; `factors` are those of the block's rows, if there is a norm; `regs` are this
// thread's in byte code, every `step`th.
template <bool PICKED>
DEV void finish_tile(const Gemm& p, const Share& s, Residuals& r, float* sums, u32 width, const float* factors, float* regs,
                     u32 step) {
  const Domain& d = p.domain[s.tile.domain];
  const Epilogue& e = d.epilogue;
  u32 quads = quads_of(d), first = s.tile.first;
  // Of two parts eight columns of one stand before the same eight of the other.
  bool two = d.parts != 1;
  auto at = [&](u32 n, u32 c) { return sums + n * width + (two ? c / 8 * 16 + c % 8 : c); };
  if (by_fours(e, s.tile, 4 << quads)) {
    // A thread's columns are the same in all of its rows.
    u32 all = s.count() << quads, c = (s.t & (1 << quads) - 1) * 4, col = first + c;
    float4 norm = p.norm ? *(const float4*)(p.norm + col) : float4{};
#pragma unroll 1
    for (u32 i0 = s.t; i0 < all; i0 += AT_ONCE * 128) {
      if (e.form == RESIDUAL && i0 != s.t) ask(r, e, s, quads, i0);
#pragma unroll
      for (u32 k = 0; k < AT_ONCE; k++) {
        u32 i = i0 + k * 128, n = s.rank + (i >> quads << s.by);
        if (i >= all) break;
        float4 v = *(const float4*)at(n, c);
        if (p.squares) v = times(v, factors[n]);
        if (e.form == RESIDUAL) {
          v.x = r.v[k].x + v.x, v.y = r.v[k].y + v.y, v.z = r.v[k].z + v.z, v.w = r.v[k].w + v.w;
        } else if (e.form == GATED) {
          float4 w = *(const float4*)(at(n, c) + 8);
          if (p.squares) w = times(w, factors[n]);
          v.x = gate(e, v.x) * w.x, v.y = gate(e, v.y) * w.y;
          v.z = gate(e, v.z) * w.z, v.w = gate(e, v.w) * w.w;
        }
        if (e.out) __stcg((float4*)(e.out + (u64)s.row<PICKED>(p, n) * e.out_stride + col), v);
        if (p.norm) {
          // A row's 64 columns are 16 threads'.
          u32 here = 0xffffu << (s.t & 16), stride = squares_stride(s.tile.outputs / SQUARED);
          float sum = sum_of_lanes(sum_of_lanes(squares_of(v), 4, 8, here), 1, 2, here);
          if (c == 0) __stcg(p.left_squares + (u64)(s.m0 + n) * stride + first / SQUARED, sum);
          v = times(v, norm);
        }
        if (p.left.at) leave_four(p.left, s.m0 + n, col, v);
        if (p.left.sums) *(float4*)at(n, c) = v;
      }
    }
    // Apart from the others, which most products have alone.
#pragma unroll 1
    for (u32 i = s.t; p.left.sums && i < all; i += 128) {
      u32 n = s.rank + (i >> quads << s.by);
      float4 v = *(const float4*)at(n, c);
      leave_sums_of<4>(p.left, s.m0 + n, col, (v.x + v.y) + (v.z + v.w), 0xffu << (s.t & 24));
    }
    return;
  }
#pragma unroll 1
  for (u32 i = s.t; i < s.count() << quads + 2; i += 128) {
    u32 n = s.rank + (i >> quads + 2 << s.by), c = i & (4 << quads) - 1, col = first + c;
    if (col >= s.tile.outputs) continue;
    float early = e.form == RESIDUAL ? operand(e.residual, s.m0 + n, col, nullptr, 0) : 0.0f;
    float factor = p.squares ? factors[n] : 1.0f;
    finish(e, s.row<PICKED>(p, n), col, *at(n, c) * factor, at(n, c)[two ? 8 : 0] * factor, early, regs, step);
  }
}
#endif
