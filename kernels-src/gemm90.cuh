// Many rows times weights on sm_90a: `wgmma`, with the weights as the left side.
//
// A warpgroup has 64 outputs (a *tile*), or MT times as many; a block has one or two warpgroups. Weights are the
// left side, which may be in registers: they come from memory to the lanes that multiply them and are
// taken apart there (shares.cuh), so no tile of weights is ever stored. Rows are the right side: N of
// them, 8 to 128, each as two bf16 that add up to it, in tiles that `rows` has written as the tensor
// cores want them (split.cuh), so that 64 inputs of N rows are one copy. Those go through a ring; the last
// warp that is done with a stage asks for what comes next into it.
//
// The order of inputs within 128 of them is such that a lane's share of an instruction is
// neighbours in memory: wide, lane q of four has inputs 32 q .. 32 q + 31, a unit of planes;
// narrow, 8 of every 32, 16 bytes of floats. Instruction s takes inputs 4 s .. 4 s + 3 of them.
//
// Where there are too few tiles for the chip, inputs are parted into stretches, a block of a cluster
// each, that add up in order; with many rows a block has half of them, and sums them up in the same
// order. Their number follows from the weights alone: a row's sums run in one order whatever stands
// beside it.
#pragma once
#include "finish.cuh"
#include "shares.cuh"

#if HOPPER
// Bytes of eight rows of a stage: high parts, low parts.
constexpr u32 GROUP = 2048;
// Barriers of the ring.
constexpr u32 MAX_GEMM_STAGES = 16, HEADER = 1024;

// MT: tiles of a warpgroup. SUMS: whether a block may have several stretches of inputs.
template <class S, u32 N, u32 MT, bool SUMS>
DEV void gemm90(const Gemm& p) {
  extern __shared__ u8 unaligned[];
  u32 base = (shared_address(unaligned) + 1023) & ~1023u;
  u8* shared = unaligned + (base - shared_address(unaligned));
  u32 full = base, empty = base + 8 * MAX_GEMM_STAGES, tiles = base + HEADER;
  u32 t = threadIdx.x, warp = t / 32, lane = t % 32, group = warp / 4;
  u32 groups = blockDim.x / 128, first_tile = blockIdx.y * groups * MT;
  u32 m0 = blockIdx.x * N, rows = min(N, p.rows - m0), rank = blockIdx.z, splits = gridDim.z;
  // Where a stretch of inputs begins: this block has one of them, or several in a row.
  u32 blocks = p.stride / 128, each = SUMS ? p.each : 1;
  auto stretch = [&](u32 i) { return blocks * i / (splits * each); };
  u32 begin = stretch(rank * each), end = stretch((rank + 1) * each);
  constexpr u32 STAGE = N / 8 * GROUP;
  u32 bytes = min(N / 8, (rows + 7) / 8) * GROUP, last = (end - begin) * 2;
  const u8* from = (const u8*)p.high + (u64)begin * 2 * p.groups * GROUP + (u64)blockIdx.x * STAGE;
  // Asks for a stage's rows.
  auto bring = [&](u32 i, u32 stage) {
    mbar_expect(full + 8 * stage, bytes);
    bulk_copy(tiles + stage * STAGE, from + (u64)i * p.groups * GROUP, bytes, full + 8 * stage);
  };
  if (t == 0) {
    for (u32 i = 0; i < p.stages; i++) mbar_init(full + 8 * i, 1), mbar_init(empty + 8 * i, groups * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  pdl_launch_next();

  u32 q = lane % 4, r = warp % 4 * 16 + lane / 4;
  Lines line[MT];
  // A tile's weights on both sides of a lane.
  const Matrix* matrix[MT][2];
#pragma unroll
  for (u32 i = 0; i < MT; i++) {
    Tile tile = tile_of(p, first_tile + group * MT + i);
    const Domain& d = p.domain[tile.domain];
#pragma unroll
    for (u32 s = 0; s < 2; s++) {
      // Two parts share a tile: eight outputs of one, the same eight of the other.
      u32 output = tile.first + (d.parts == 1 ? r + 8 * s : r / 16 * 8 + r % 8);
      if (output >= tile.outputs) output %= PANEL;
      matrix[i][s] = &p.part[d.part[d.parts == 1 ? 0 : s]];
      line[i].panel[s] = matrix[i][s]->data + (u64)(output / PANEL) * matrix[i][s]->panel_bytes;
      line[i].row = output % PANEL;
    }
  }
  S share[MT];
  // Step `step` of `block`. Past the last block that is taken once more: nobody looks at it.
  auto fetch = [&](u32 block, int step, bool first) {
#pragma unroll
    for (u32 i = 0; i < MT; i++) share[i].fetch(*matrix[i][0], *matrix[i][1], line[i], block, end, q, p.wide, step, first);
  };
#pragma unroll
  for (u32 i = 0; i < MT; i++) share[i].begin(*matrix[i][0], *matrix[i][1], line[i], min(begin, blocks - 1), q, p.wide);
#pragma unroll
  for (int step = 0; step < S::SLOTS; step++) fetch(begin, step, true);
  pdl_wait();
  if (t == 0)
    for (u32 i = 0; i < min(p.stages, last); i++) bring(i, i);

  float acc[MT][N / 2];
#pragma unroll
  for (u32 i = 0; i < MT; i++)
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) acc[i][j] = 0.0f;
  // Stretches that are summed up, and where the one at hand ends.
  float total[SUMS ? N / 2 : 1];
  u32 stretches = 1, next = stretch(rank * each + 1);
  if constexpr (SUMS) {
    static_assert(MT == 1, "registers");
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) total[j] = 0.0f;
  }
  // The ring: which of all stages, where in the ring, and how often round.
  u32 at = 0, stage = 0, parity = 0;
  auto done = [&](u32 at, u32 stage, u32 parity) {
    if (lane != 0 || at + p.stages >= last || !mbar_arrive_last(empty + 8 * stage)) return;
    mbar_wait(empty + 8 * stage, parity);
    bring(at + p.stages, stage);
  };
#pragma unroll 1
  for (u32 block = begin; block < end; block++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (step % 2 == 0) mbar_wait(full + 8 * stage, parity);
      u64 rows_at = wg_tile(tiles + stage * STAGE + step % 2 * 64, GROUP);
      Left left[MT];
#pragma unroll
      for (u32 i = 0; i < MT; i++) take_apart(left[i], *matrix[i][0], *matrix[i][1], share[i], step, p.zero);
#pragma unroll
      for (u32 i = 0; i < MT; i++) keep(left[i], !S::EXACT);
      fetch(block + (step + S::SLOTS) / STEPS, (step + S::SLOTS) % STEPS, false);
      wg_fence();
#pragma unroll
      for (int x = 0; x < 2; x++) {
        u64 high = rows_at + x * 2, low = high + GROUP / 2 / 16;
#pragma unroll
        for (u32 i = 0; i < MT; i++) {
          WgProduct<N>::add(acc[i], left[i].high[x], low);
          if constexpr (!S::EXACT) WgProduct<N>::add(acc[i], left[i].low[x], high);
          WgProduct<N>::add(acc[i], left[i].high[x], high);
        }
      }
      wg_commit();
      if constexpr (S::EXACT) {
        // The step before is done, and with it perhaps a stage. Registers hold the left sides of two.
        wg_wait<1>();
        if (step % 2 == 0 && at > 0)
          done(at - 1, stage == 0 ? p.stages - 1 : stage - 1, stage == 0 ? parity ^ 1 : parity);
      } else {
        wg_wait<0>();
        if (step % 2 == 1) done(at, stage, parity);
      }
      if (step % 2 == 1) {
        at++;
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }
    }
    if constexpr (SUMS) {
      if (block + 1 == next) {
        wg_wait<0>();
#pragma unroll
        for (u32 j = 0; j < N / 2; j++) {
          wg_keep(acc[0][j]);
          total[j] += acc[0][j];
          acc[0][j] = 0.0f;
        }
        next = stretch(rank * each + ++stretches);
      }
    }
  }
  wg_wait<0>();
  if constexpr (SUMS)
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) acc[0][j] = total[j];

  // The ring has served: no copy is on its way, and nobody reads it any more once all are here. Sums go
  // there, so that neighbours in a row are written by neighbouring threads.
  u32 width = groups * MT * WG_M + 4;
  float* sums = (float*)(shared + HEADER);
  __syncthreads();
#pragma unroll
  for (u32 i = 0; i < MT; i++)
#pragma unroll
    for (u32 j = 0; j < N / 2; j++)
      sums[(j / 4 * 8 + q * 2 + j % 2) * width + (group * MT + i) * WG_M + r + j % 4 / 2 * 8] = acc[i][j];
  // A warpgroup finishes its own tiles.
  auto own = [&](u32 i) {
    return Share{tile_of(p, first_tile + group * MT + i), m0, rows, rank, splits, t % 128};
  };
  Residuals residuals;
  ask_early(residuals, p, own(0));
  if (splits > 1) {
    cluster_meet();
    add_up(shared_address(sums), width, rows, rank, splits, t, blockDim.x);
    // Nobody leaves while others read its memory.
    cluster_arrive();
  }
  __syncthreads();
#pragma unroll 1
  for (u32 i = 0; i < MT; i++) {
    Share s = own(i);
    if (i > 0) ask_early(residuals, p, s);
    finish_tile(p, s, residuals, sums + (group * MT + i) * WG_M, width, sums + N * width + t, blockDim.x);
  }
  if (splits > 1) cluster_wait();
}
#endif
