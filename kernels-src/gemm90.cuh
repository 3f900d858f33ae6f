// Many rows times weights on sm_90a: `wgmma`, with the weights as the left side.
//
// A warpgroup has 64 outputs (a *tile*), a block two warpgroups. Weights are the left side, which may be in
// registers: they come from memory to the lanes that multiply them and are taken apart there (shares.cuh),
// so no tile of weights is ever stored. Rows are the right side: N of them, 64 or 128, each as two bf16
// that add up to it, in tiles that a launch before has written as the tensor cores want them (split.cuh), so
// that 64 inputs of N rows are one copy. Those go through a ring; the last warp that is done with a stage
// asks for what comes next into it. Few rows have a kernel of their own (few90.cuh).
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

// The panels of the two outputs of a lane, `r` and `r + 8` of a tile, and their matrices.
template <class P>
DEV Lines lines_of(const P& p, Tile tile, u32 r, const Matrix* (&matrix)[2]) {
  Lines line;
  const Domain& d = p.domain[tile.domain];
#pragma unroll
  for (u32 s = 0; s < 2; s++) {
    // Two parts share a tile: eight outputs of one, the same eight of the other.
    u32 output = tile.first + (d.parts == 1 ? r + 8 * s : r / 16 * 8 + r % 8);
    if (output >= tile.outputs) output %= PANEL;
    matrix[s] = &p.part[d.part[d.parts == 1 ? 0 : s]];
    line.panel[s] = matrix[s]->data + (u64)(output / PANEL) * matrix[s]->panel_bytes;
    line.row = output % PANEL;
  }
  return line;
}

// Floats from a row of sums to the next, so that neighbours in a row are written by neighbouring threads.
DEV u32 sums_width(u32 tiles) { return tiles * WG_M + 4; }
// A lane's sums of a tile go to shared memory.
template <u32 N>
DEV void put_sums(const float (&acc)[N / 2], float* sums, u32 width) {
  u32 t = threadIdx.x, q = t % 4, r = t / 32 % 4 * 16 + t % 32 / 4;
#pragma unroll
  for (u32 j = 0; j < N / 2; j++) sums[(j / 4 * 8 + q * 2 + j % 2) * width + r + j % 4 / 2 * 8] = acc[j];
}

// What becomes of a block's sums: `each` times N rows of them, of stretches in a row, which are added up over the blocks of a
// cluster; registers of byte code are behind. A warpgroup finishes a tile, if there is one for it.
template <u32 N>
DEV void finish_block(const Gemm& p, float* sums, u32 each, u32 first_tile, u32 tiles) {
  u32 t = threadIdx.x, width = sums_width(tiles), group = t / 128;
  u32 m0 = blockIdx.x * N, rows = min(N, p.rows - m0), rank = blockIdx.z, splits = gridDim.z;
  Share share = {tile_of(p, first_tile + group), m0, rows, rank, log_of(splits), t % 128};
  Residuals residuals;
  if (group < tiles) ask_early(residuals, p, share);
  if (splits > 1) cluster_meet();
  if (splits * each > 1) {
    if (splits == 1) __syncthreads();
    add_up(shared_address(sums), width, N, rows, rank, splits, each, t, blockDim.x);
    // Nobody leaves while others read its memory.
    if (splits > 1) cluster_arrive();
  }
  __syncthreads();
  if (group < tiles) finish_tile(p, share, residuals, sums + group * WG_M, width, sums + each * N * width + t, blockDim.x);
  if (splits > 1) cluster_wait();
}

// SUMS: whether a block may have several stretches of inputs.
template <class S, u32 N, bool SUMS>
DEV void gemm90(const Gemm& p) {
  extern __shared__ u8 unaligned[];
  u32 base = (shared_address(unaligned) + 1023) & ~1023u;
  u8* shared = unaligned + (base - shared_address(unaligned));
  u32 full = base, empty = base + 8 * MAX_GEMM_STAGES, tiles = base + HEADER;
  u32 t = threadIdx.x, warp = t / 32, lane = t % 32, group = warp / 4;
  u32 groups = blockDim.x / 128, first_tile = blockIdx.y * groups;
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
  // A tile's weights on both sides of a lane.
  const Matrix* matrix[2];
  Lines line = lines_of(p, tile_of(p, first_tile + group), r, matrix);
  S share;
  // Step `step` of `block`. Past the last block that is taken once more: nobody looks at it.
  auto fetch = [&](u32 block, int step, bool first) {
    share.fetch(*matrix[0], *matrix[1], line, block, end, q, p.wide, step, step, first);
  };
  share.begin(*matrix[0], *matrix[1], line, min(begin, blocks - 1), q, p.wide);
#pragma unroll
  for (int step = 0; step < S::SLOTS; step++) fetch(begin, step, true);
  pdl_wait();
  if (t == 0)
    for (u32 i = 0; i < min(p.stages, last); i++) bring(i, i);

  float acc[N / 2];
#pragma unroll
  for (u32 j = 0; j < N / 2; j++) acc[j] = 0.0f;
  // Stretches that are summed up, and where the one at hand ends.
  float total[SUMS ? N / 2 : 1];
  u32 stretches = 1, next = stretch(rank * each + 1);
  if constexpr (SUMS) {
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
      Left left;
      take_apart(left, *matrix[0], *matrix[1], share, step, step, p.zero);
      keep(left, !S::EXACT);
      fetch(block + (step + S::SLOTS) / STEPS, (step + S::SLOTS) % STEPS, false);
      wg_fence();
#pragma unroll
      for (int x = 0; x < 2; x++) {
        u64 high = rows_at + x * 2, low = high + GROUP / 2 / 16;
        WgProduct<N>::add(acc, left.high[x], low);
        if constexpr (!S::EXACT) WgProduct<N>::add(acc, left.low[x], high);
        WgProduct<N>::add(acc, left.high[x], high);
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
          wg_keep(acc[j]);
          total[j] += acc[j];
          acc[j] = 0.0f;
        }
        next = stretch(rank * each + ++stretches);
      }
    }
  }
  wg_wait<0>();
  if constexpr (SUMS)
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) acc[j] = total[j];

  // The ring has served: no copy is on its way, and nobody reads it any more once all are here.
  float* sums = (float*)(shared + HEADER);
  __syncthreads();
  put_sums<N>(acc, sums + group * WG_M, sums_width(groups));
  finish_block<N>(p, sums, 1, first_tile, groups);
}
#endif
