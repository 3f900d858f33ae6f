// Many rows times weights on sm_90a: `wgmma`, with the weights as the left side.
//
// A warpgroup has 64 outputs (a *tile*), a block two warpgroups. Weights are the left side, which may be in
// registers: they come from memory to the lanes that multiply them and are taken apart there (shares.cuh),
// so no tile of weights is ever stored. Rows are the right side: N of them, 64 or, of floats, 128, each as two bf16
// that add up to it, in tiles that a launch before has written as the tensor cores want them (split.cuh), so
// that 64 inputs of N rows are one copy. Those go through a ring; the last warp that is done with a stage
// asks for what comes next into it. Few rows have a kernel of their own (few90.cuh).
//
// An instruction takes 16 inputs, and lane q of four has four of them, in an order such that its share is neighbours in
// memory: by fours, 4 q .. of every 16, a word of a unit of planes; by eights, 8 q .. of every 32, 16 bytes of floats, of
// which the first of two instructions takes four.
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
// Warpgroups of a block that has many rows, and its threads.
constexpr u32 MANY_GROUPS = 2, MANY_THREADS = MANY_GROUPS * 128;

// The panels of the two outputs of a lane, `r` and `r + 8` of a tile, and their matrices.
template <class P>
DEV Lines lines_of(const P& p, Tile tile, u32 expert, u32 r, const Matrix* (&matrix)[2]) {
  Lines line;
  const Domain& d = p.domain[tile.domain];
#pragma unroll
  for (u32 s = 0; s < 2; s++) {
    // Two parts share a tile: eight outputs of one, the same eight of the other.
    u32 output = tile.first + (d.parts == 1 ? r + 8 * s : r / 16 * 8 + r % 8);
    if (output >= tile.outputs) output %= PANEL;
    matrix[s] = &p.part[d.part[d.parts == 1 ? 0 : s]];
    u32 panels = (matrix[s]->rows + PANEL - 1) / PANEL;
    line.panel[s] = matrix[s]->data + (u64)(expert * panels + output / PANEL) * matrix[s]->panel_bytes;
    line.row = output % PANEL;
  }
  return line;
}

// Whether a block has no rows: there may be more blocks than tiles of picks.
template <u32 N, bool PICKED>
DEV bool nobody_picked(const Gemm& p) {
  if constexpr (!PICKED) return false;
  pdl_wait();
  return batch_of<N, PICKED>(p).rows == 0;
}
// The same rows, which stand behind the barriers that begin at `base` where they are not known from the block: registers are
// for other things.
template <u32 N, bool PICKED>
DEV Batch kept_batch(const Gemm& p, u32 base) {
  if constexpr (!PICKED) return batch_of<N, PICKED>(p);
  Batch batch = {};
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(batch.first), "=r"(batch.rows) : "r"(base + 16 * MAX_GEMM_STAGES) : "memory");
  return batch;
}
// The group of eight rows that it begins with, and where that is in a stage of all rows.
template <u32 N, bool PICKED>
DEV u32 group_of(const Batch& batch) {
  return PICKED ? batch.first / 8 : blockIdx.x * (N / 8);
}
template <u32 N, bool PICKED>
DEV u64 bytes_before(const Batch& batch) {
  return PICKED ? (u64)(batch.first / 8) * GROUP : (u64)blockIdx.x * (N / 8 * GROUP);
}
// Their bytes in a stage.
template <u32 N>
DEV u32 bytes_of(const Batch& batch) { return min(N / 8, (batch.rows + 7) / 8) * GROUP; }
template <bool PICKED>
DEV void keep_batch(const Batch& batch, u32 base) {
  if constexpr (PICKED)
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(base + 16 * MAX_GEMM_STAGES), "r"(batch.first), "r"(batch.rows) : "memory");
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
template <u32 N, bool PICKED>
DEV void finish_block(const Gemm& p, float* sums, u32 each, u32 first_tile, u32 tiles) {
  u32 t = threadIdx.x, width = sums_width(tiles), group = t / 128;
  u32 rank = blockIdx.z, splits = gridDim.z;
  Batch batch = kept_batch<N, PICKED>(p, shared_address(sums) - HEADER);
  u32 rows = batch.rows;
  Share share = {tile_of(p, first_tile + group), batch.first, rows, rank, log_of(splits), t % 128};
  // What is sent for now need not be here before the others are told of the sums.
  if (splits > 1) cluster_arrive();
  Residuals residuals;
  if (group < tiles) ask_early(residuals, p, share);
  // Factors have their place between barriers and what no sums are.
  static_assert(16 * MAX_GEMM_STAGES + 8 * PICKED + 4 * N + SUMS <= HEADER, "the header");
  float* factors = sums - SUMS / 4 - N;
  Factors<N> norm = {p, share};
  if (p.squares) norm.ask();
  if (splits > 1) cluster_wait();
  if (p.squares) norm.make(factors);
  if (splits * each > 1) {
    if (splits == 1) __syncthreads();
    add_up(shared_address(sums), width, N, rows, rank, splits, each, t, blockDim.x);
    // Nobody leaves while others read its memory.
    if (splits > 1) cluster_leave();
  }
  __syncthreads();
  float* regs = sums + each * N * width + t;
  if (group < tiles) finish_tile<PICKED>(p, share, residuals, sums + group * WG_M, width, factors, regs, blockDim.x);
  if (splits > 1) cluster_wait();
}

// Sums of stretches that are done, where a block has several: in shared memory behind the ring, a thread's own.
template <u32 N>
struct Stretches {
  float* at;
  bool some = false;
  // Adds to what is there, in order; or the last, to registers.
  DEV void put(float (&acc)[N / 2], bool last) {
    if (last && !some) return;
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) {
      float sum = some ? at[j * MANY_THREADS] + acc[j] : acc[j];
      if (!last) at[j * MANY_THREADS] = sum;
      acc[j] = last ? sum : 0.0f;
    }
    some = true;
  }
};

// Asks for 64 inputs of a block's rows, so many bytes, the `i`th of those at `from`, which are of block `first` of 128 and on; and
// where they end a block for its sums, those of rows from group `group` on: planes have even stages.
template <class S>
DEV void bring_rows(const Gemm& p, const u8* from, u32 group, u32 first, u32 i, u32 bytes, u32 to, u32 to_sums, u32 full) {
  u32 sums = S::SUMMED && p.sums && i % 2 ? bytes / (GROUP / SUMS) : 0;
  mbar_expect(full, bytes + sums);
  bulk_copy(to, from + (u64)i * p.groups * GROUP, bytes, full);
  if (sums) bulk_copy(to_sums, p.sums + ((u64)(first + i / 2) * p.groups + group) * SUMS, sums, full);
}

// Sums of rows that a stage has. A branch around an instruction would have all of them wait for each other: where nothing is added
// there are zeros, in front of the ring.
DEV void no_sums(u32 base) {
  if (threadIdx.x < SUMS / 4)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(base + HEADER - SUMS + 4 * threadIdx.x), "r"(0) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
DEV WgRows sums_in(const Gemm& p, u32 at, u32 base) { return p.sums ? wg_plain(at, 0, SUMS) : wg_plain(base + HEADER - SUMS, 0, 0); }

// A step of planes: what a unit comes to, from zero, is scaled and added. Before the block's last one what is added to weights
// is multiplied with sums of rows. Another step's weights are fetched meanwhile.
template <u32 N, class S, class Fetch>
DEV void step_of_planes(S& share, const Matrix& a, const Matrix& b, int step, WgRows rows_at, WgRows sums_at, Left& left,
                        float (&acc)[N / 2], Fetch fetch) {
  // What comes ahead may take their place.
  typename S::Made made = share.make(a, b, step);
  bool adds = S::SUMMED && step == STEPS - 1;
  typename S::Added added;
  if (adds) added = share.added(a, b, step);
  float sum[N / 2];
#pragma unroll
  for (u32 part = 0; part < S::PARTS; part++) {
    u32 more[4];
    if (adds) {
      added.left(part, more);
#pragma unroll
      for (u32 i = 0; i < 4; i++) wg_keep(more[i]);
    }
    // From zero: nobody waits for what these registers had.
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) asm volatile("" : "=f"(sum[j]));
    wg_fence();
#pragma unroll
    for (u32 x = part; x < 2; x += S::PARTS) {
      WgRows high = rows_at.on(x * 32), low = high.on(GROUP / 2);
      if (x == part) WgProduct<N>::template add<true>(sum, left.high[x], low);
      else WgProduct<N>::add(sum, left.high[x], low);
      WgProduct<N>::add(sum, left.high[x], high);
    }
    if (adds) WgProduct<N>::add(acc, more, sums_at.on(part * (SUMS / 2)));
    wg_commit();
    if (part == 0) fetch();
    wg_wait<0>();
#pragma unroll
    for (u32 j = 0; j < N / 2; j++) wg_keep(sum[j]);
    if (adds) {
#pragma unroll
      for (u32 j = 0; j < N / 2; j++) wg_keep(acc[j]);
    }
    S::template put<N / 2>(made, part, sum, acc);
  }
}

// A step of floats. EXACT: what is left over by high parts is nothing.
template <u32 N, bool EXACT>
DEV void step_of_floats(WgRows rows_at, const Left& left, float (&acc)[N / 2]) {
  wg_fence();
#pragma unroll
  for (int x = 0; x < 2; x++) {
    WgRows high = rows_at.on(x * 32), low = high.on(GROUP / 2);
    WgProduct<N>::add(acc, left.high[x], low);
    if constexpr (!EXACT) WgProduct<N>::add(acc, left.low[x], high);
    WgProduct<N>::add(acc, left.high[x], high);
  }
  wg_commit();
}

// Leaves a block's sums in shared memory.
template <class S, u32 N, bool PICKED>
DEV void gemm90(const Gemm& p, u8* shared) {
  u32 base = shared_address(shared);
  u32 full = base, empty = base + 8 * MAX_GEMM_STAGES, tiles = base + HEADER;
  u32 t = threadIdx.x, warp = t / 32, lane = t % 32, group = warp / 4;
  u32 first_tile = blockIdx.y * MANY_GROUPS;
  u32 rank = blockIdx.z, splits = gridDim.z;
  Batch batch = batch_of<N, PICKED>(p);
  // Where a stretch of inputs begins: this block has one of them, or several in a row.
  u32 blocks = p.stride / 128, each = p.each;
  auto stretch = [&](u32 i) { return blocks * i >> log_of(splits * each); };
  u32 begin = stretch(rank * each), end = stretch((rank + 1) * each);
  constexpr u32 STAGE = N / 8 * GROUP;
  u32 bytes = bytes_of<N>(batch), group_of_rows = group_of<N, PICKED>(batch);
  const u8* from = (const u8*)p.high + bytes_before<N, PICKED>(batch);
  // Sums of rows are behind sums of stretches.
  u32 row_sums = tiles + p.stages * STAGE + MANY_THREADS * N / 2 * 4;
  // Asks for a stage's rows.
  auto bring = [&](u32 i, u32 stage) {
    u32 to_sums = row_sums + stage / 2 * (N / 8 * SUMS);
    if constexpr (PICKED) {
      Batch kept = kept_batch<N, PICKED>(p, base);
      from = (const u8*)p.high + bytes_before<N, PICKED>(kept), group_of_rows = group_of<N, PICKED>(kept), bytes = bytes_of<N>(kept);
    }
    bring_rows<S>(p, from, group_of_rows, 0, i, bytes, tiles + stage * STAGE, to_sums, full + 8 * stage);
  };
  if (t == 0) {
    keep_batch<PICKED>(batch, base);
    for (u32 i = 0; i < p.stages; i++) mbar_init(full + 8 * i, 1), mbar_init(empty + 8 * i, MANY_GROUPS * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if constexpr (S::SUMMED) no_sums(base);
  __syncthreads();
  pdl_launch_next();

  u32 q = lane % 4, r = warp % 4 * 16 + lane / 4;
  // A tile's weights on both sides of a lane.
  const Matrix* matrix[2];
  Lines line = lines_of(p, tile_of(p, first_tile + group), batch.expert, r, matrix);
  const Matrix &a = *matrix[0], &b = *matrix[1];
  S share;
  // Step `step` of `block`. Past the last block that is taken once more: nobody looks at it.
  auto fetch = [&](u32 block, int step, bool first) { share.fetch(a, b, line, block, end, q, step, step, first); };
  share.begin(a, b, p.part[0], line, min(begin, blocks - 1), q);
#pragma unroll
  for (int step = 0; step < S::SLOTS; step++) fetch(begin, step, true);
  pdl_wait();
  if (t == 0)
    for (u32 i = 0; i < min(p.stages, (end - begin) * 2); i++) bring(begin * 2 + i, i);

  float acc[N / 2];
#pragma unroll
  for (u32 j = 0; j < N / 2; j++) acc[j] = 0.0f;
  // Where the stretch at hand ends, of how many.
  Stretches<N> sums_before = {(float*)(shared + HEADER + p.stages * STAGE) + t};
  u32 stretches = 1, next = stretch(rank * each + 1);
  // The ring: where in it, and how often round.
  u32 stage = 0, parity = 0;
  auto done = [&](u32 i, u32 stage, u32 parity) {
    if (lane != 0 || i + p.stages >= end * 2 || !mbar_arrive_last(empty + 8 * stage)) return;
    mbar_wait(empty + 8 * stage, parity);
    bring(i + p.stages, stage);
  };
#pragma unroll 1
  for (u32 block = begin; block < end; block++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (step % 2 == 0) mbar_wait(full + 8 * stage, parity);
      WgRows rows_at = wg_tile(tiles + stage * STAGE + step % 2 * 64, GROUP);
      Left left;
      take_apart(left, share, a, b, step, p.zero);
      keep(left, !S::EXACT);
      auto ahead = [&]() { fetch(block + (step + S::SLOTS) / STEPS, (step + S::SLOTS) % STEPS, false); };
      if constexpr (S::SCALED) {
        step_of_planes<N>(share, a, b, step, rows_at, sums_in(p, row_sums + stage / 2 * (N / 8 * SUMS), base), left, acc, ahead);
      } else {
        ahead();
        step_of_floats<N, S::EXACT>(rows_at, left, acc);
      }
      if constexpr (S::EXACT && !S::SCALED) {
        // The step before is done, and with it perhaps a stage. Registers hold the left sides of two.
        wg_wait<1>();
        if (step % 2 == 0 && (step > 0 || block > begin))
          done(block * 2 + step / 2 - 1, stage == 0 ? p.stages - 1 : stage - 1, stage == 0 ? parity ^ 1 : parity);
      } else {
        if constexpr (!S::SCALED) wg_wait<0>();
        if (step % 2 == 1) done(block * 2 + step / 2, stage, parity);
      }
      if (step % 2 == 1 && ++stage == p.stages) stage = 0, parity ^= 1;
    }
    if (block + 1 == next && block + 1 < end) {
      wg_wait<0>();
#pragma unroll
      for (u32 j = 0; j < N / 2; j++) wg_keep(acc[j]);
      sums_before.put(acc, false);
      next = stretch(rank * each + ++stretches);
    }
  }
  wg_wait<0>();
#pragma unroll
  for (u32 j = 0; j < N / 2; j++) wg_keep(acc[j]);
  sums_before.put(acc, true);

  // The ring has served: no copy is on its way, and nobody reads it any more once all are here.
  __syncthreads();
  put_sums<N>(acc, (float*)(shared + HEADER) + group * WG_M, sums_width(MANY_GROUPS));
}

// How weights are taken apart: the first that takes them.
template <u32 N, bool PICKED, class FIRST, class... REST>
DEV void gemm_many_as(const Gemm& p, u8* shared) {
  if constexpr (sizeof...(REST) == 0) {
    gemm90<FIRST, N, PICKED>(p, shared);
  } else if constexpr (!FIRST::WORTH) {
    gemm_many_as<N, PICKED, REST...>(p, shared);
  } else {
    const Domain& d = p.domain[tile_of(p, blockIdx.y * MANY_GROUPS + threadIdx.x / 128).domain];
    if (__syncthreads_and(FIRST::takes(p.part[d.part[0]], p.part[d.part[d.parts == 1 ? 0 : 1]], p.part[0])))
      gemm90<FIRST, N, PICKED>(p, shared);
    else gemm_many_as<N, PICKED, REST...>(p, shared);
  }
}
template <u32 N, bool PICKED, class... HOW>
DEV void gemm_many(const Gemm& p) {
  extern __shared__ u8 unaligned[];
  u8* shared = unaligned + (-shared_address(unaligned) & 1023);
  if (nobody_picked<N, PICKED>(p)) return;
  gemm_many_as<N, PICKED, HOW...>(p, shared);
  finish_block<N, PICKED>(p, (float*)(shared + HEADER), 1, blockIdx.y * MANY_GROUPS, MANY_GROUPS);
}
#endif
