// Few rows times weights on sm_90a: a warpgroup, whose weights come by bulk copies.
//
// A block has a tile of 64 outputs and one or two stretches of the inputs, one after the other; a warp has 16
// outputs. Nearly all that must be brought is weights, each of which is used once: so a
// warp brings its own four panels to shared memory span by span, a page each, the next
// ahead and the first ones before the kernel waits, and waits for nobody but them. Eight lanes copy a panel's span by 16
// bytes, which is half of the instructions that four bulk copies and a barrier are. Four blocks share a multiprocessor.
// Rows go through a ring that all share, as in gemm90.cuh; so do the order of inputs, how weights are taken apart, the
// order in which products are summed up, and with that each row's bits. Up to 8 rows are multiplied by `mma` of a warp,
// up to 32 by `wgmma`: both kinds of instruction add up alike, which tests hold them to.
#pragma once
#include "gemm90.cuh"
#include "halves.cuh"

#if HOPPER
// acc[16 x 8] += a[16 x 16] b[16 x 8] in bf16.
DEV void multiply_bf16(float* c, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// What is added to a block's weights, times sums of rows.
template <class S>
DEV void add_sums(const S& share, const Matrix& a, const Matrix& b, int slot, u32 part, u32 sums, float* acc) {
  u32 left[4], rows;
  share.added(a, b, slot).left(part, left);
  weights(sums + part * (SUMS / 2) + threadIdx.x % 32 * 4, rows);
  multiply_bf16(acc, left, rows, rows);
}
// Steps `step` .. of a block over eight rows, as many as S takes at once: `right` brings the high and the low part of rows of an
// instruction of a step; sums of rows are at `sums`, if not 0. Products that wait for each other are not neighbours.
template <class S, class Right>
DEV void multiply_steps(S& share, const Matrix& a, const Matrix& b, int step, u32 zero, Right right, u32 sums, float* acc) {
  if constexpr (!S::SCALED) {
    Left left;
    take_apart(left, share, a, b, step, zero);
#pragma unroll
    for (u32 x = 0; x < 2; x++) {
      u32 rows[4];
      right(step, x, rows);
      multiply_bf16(acc, left.high[x], rows[2], rows[3]);
      if constexpr (!S::EXACT) multiply_bf16(acc, left.low[x], rows[0], rows[1]);
      multiply_bf16(acc, left.high[x], rows[0], rows[1]);
    }
  } else {
    constexpr u32 UNITS = S::AT_ONCE;
    Left left[UNITS];
    typename S::Made made[UNITS];
#pragma unroll
    for (u32 u = 0; u < UNITS; u++) take_apart(left[u], share, a, b, step + u, zero), made[u] = share.make(a, b, step + u);
    float sum[UNITS][4];
#pragma unroll
    for (u32 x = 0; x < 2; x++) {
      u32 rows[UNITS][4], part = S::PARTS == 2 ? x : 0;
#pragma unroll
      for (u32 u = 0; u < UNITS; u++) {
        right(step + u, x, rows[u]);
        if (x == part) sum[u][0] = sum[u][1] = sum[u][2] = sum[u][3] = 0;
      }
#pragma unroll
      for (u32 high = 0; high < 2; high++)
#pragma unroll
        for (u32 u = 0; u < UNITS; u++) multiply_bf16(sum[u], left[u].high[x], rows[u][high ? 0 : 2], rows[u][high ? 1 : 3]);
      // Before the block's last unit is added, as in gemm90.cuh.
      if constexpr (S::SUMMED) {
        if (x < S::PARTS && step == STEPS - 1 && sums) add_sums(share, a, b, step, x, sums, acc);
      }
      if (x == 0 && S::PARTS == 1) continue;
#pragma unroll
      for (u32 u = 0; u < UNITS; u++) S::template put<4>(made[u], part, sum[u], acc);
    }
  }
}

// Rows and weights on their way, for one warp.
template <u32 N, bool PICKED>
struct Few {
  static constexpr u32 STAGE = N / 8 * GROUP, SUMS_STAGE = N / 8 * SUMS, TEAM = 4;
  const Gemm& p;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4, half = lane / 16;
  // Barriers of the ring; sums of stretches, the ring and sums of its rows, this warp's pages.
  u32 full, empty, tiles, row_sums, pages;
  float* sums;
  Batch batch = batch_of<N, PICKED>(p);
  u32 each = p.each, blocks = p.stride / 128, begin, end, last, bytes;
  const u8* from;
  const Matrix* matrix[2];
  Lines line;
  u32 at = 0, stage = 0, parity = 0, page = 0, next;
  // Where this lane's share of the next span is, and how much is left of its panel.
  const u8* ahead;
  u32 left;

  // Where the `i`th of this block's stretches begins.
  DEV u32 stretch(u32 i) const { return blocks * (blockIdx.z * each + i) >> log_of(gridDim.z * each); }
  DEV Few(const Gemm& p, u8* unaligned) : p(p) {
    u32 base = (shared_address(unaligned) + 1023) & ~1023u;
    sums = (float*)(unaligned + (base - shared_address(unaligned)) + HEADER);
    // Of several stretches in a row the sums of all but the last have a place of their own.
    u32 kept = ((each - 1) * N * sums_width(1) * 4 + 1023) / 1024 * 1024;
    full = base, empty = full + 8 * MAX_GEMM_STAGES;
    tiles = base + HEADER + kept, row_sums = tiles + p.stages * STAGE;
    pages = row_sums + (p.sums ? p.stages / 2 * SUMS_STAGE : 0) + warp * p.pages * 4 * p.page;
    begin = stretch(0), end = stretch(each), last = (end - begin) * 2;
    bytes = bytes_of<N>(batch);
    from = (const u8*)p.high + (u64)begin * 2 * p.groups * GROUP + bytes_before<N, PICKED>(batch);
    line = lines_of(p, tile_of(p, blockIdx.y), batch.expert, warp * 16 + lane / 4, matrix);
    // The first lane that reads a panel knows which it is: others may be past the last output.
    u64 panels[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) panels[i] = __shfl_sync(FULL, (u64)line.panel[i], lane / 8 % 2 * 16);
    ahead = (const u8*)(half ? panels[1] : panels[0]);
  }
  DEV void begin_barriers() const {
    if (threadIdx.x == 0) keep_batch<PICKED>(batch, full);
    if (threadIdx.x < p.stages) mbar_init(full + 8 * threadIdx.x, 1), mbar_init(empty + 8 * threadIdx.x, TEAM);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    if (N > 8) no_sums(full);
  }
  // Asks for 64 inputs of the rows.
  template <class S>
  DEV void bring(u32 i, u32 stage) const {
    u32 to = tiles + stage * STAGE, to_sums = row_sums + stage / 2 * SUMS_STAGE;
    bring_rows<S>(p, from, group_of<N, PICKED>(batch), begin, i, bytes, to, to_sums, full + 8 * stage);
  }
  // Whose panel this lane copies.
  DEV const Matrix& copied() const { return half ? *matrix[1] : *matrix[0]; }
  // From the span on with which this block's inputs begin.
  template <class S>
  DEV void begin_pages() {
    const Matrix& m = copied();
    u32 from = begin / S::BLOCKS * m.span_bytes;
    next = begin / S::BLOCKS, ahead += from + lane % 8 * 16, left = m.panel_bytes - from;
#pragma unroll 1
    for (u32 i = 0; i < p.pages; i++) fetch<S>(i);
  }
  // Asks for a page, the next span of four panels.
  template <class S>
  DEV void fetch(u32 page) {
    if (next++ * S::BLOCKS < end) {
      const Matrix& m = copied();
      u32 bytes = min(left, m.span_bytes), to = pages + (page * 4 + lane / 8) * p.page + lane % 8 * 16;
#pragma unroll
      for (u32 i = 0; i < S::SPAN; i += 128)
        if (lane % 8 * 16 + i < bytes) async_copy(to + i, ahead + i);
      ahead += m.span_bytes, left -= m.span_bytes;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  // Until the page at hand is there.
  template <class S>
  DEV void wait_page() const {
    if (p.pages == 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else if (S::SCALED || p.pages == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
    else if (p.pages == 3) asm volatile("cp.async.wait_group 2;" ::: "memory");
    else asm volatile("cp.async.wait_group 3;" ::: "memory");
    __syncwarp();
  }
  // A page is done with: what comes next into it is asked for, and the next one waited for.
  template <class S>
  DEV void next_page() {
    __syncwarp();
    fetch<S>(page);
    if (++page == p.pages) page = 0;
    wait_page<S>();
  }
  // Of planes and more than eight rows the ring has two stages, a block of 128 inputs: which one a step has, and with that all
  // addresses, is known while compiling.
  template <class S>
  static constexpr bool ONE_BLOCK = N > 8 && S::SCALED;
  template <class S>
  DEV u32 stage_of(int step) const { return ONE_BLOCK<S> ? step / 2 : stage; }
  // The stage of a step is done with: whoever is last asks for what comes next into it.
  template <class S>
  DEV void next_stage(int step) {
    u32 stages = ONE_BLOCK<S> ? 2 : p.stages, done = stage_of<S>(step);
    __syncwarp();
    if (lane == 0 && at + stages < last && mbar_arrive_last(empty + 8 * done)) {
      mbar_wait(empty + 8 * done, parity);
      bring<S>(at + stages, done);
    }
    at++;
    if (ONE_BLOCK<S> ? step == STEPS - 1 : ++stage == stages) stage = 0, parity ^= 1;
  }

  // A block of 128 inputs, by `mma`.
  template <class S>
  DEV void narrow(S& share, float (&acc)[N / 2]) {
    const Matrix &a = *matrix[0], &b = *matrix[1];
    // The row of eight and the piece of it that this lane has the address of; high parts, then low ones.
    u32 row_at = lane / 16 * (GROUP / 2) + lane % 8 * 128, piece = lane / 8 % 2;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      share.template fetch<false>(a, b, q, step);
      if (step % 2 == 0) mbar_wait(full + 8 * stage, parity);
      if ((step + 1) % S::AT_ONCE) continue;
      // What rows that are not there give, nobody looks at.
      multiply_steps(share, a, b, step + 1 - S::AT_ONCE, p.zero, [&](int step, u32 x, u32 (&rows)[4]) {
        u32 k = (step % 2 * 2 + x) * 2 + piece;
        four(rows, tiles + stage * STAGE + row_at + (k ^ lane % 8) * 16);
      }, p.sums ? row_sums + stage / 2 * SUMS_STAGE : 0, acc);
      if (step % 2 == 1) next_stage<S>(step);
    }
  }
  // The same by `wgmma`.
  template <class S>
  DEV void wide(S& share, float (&acc)[N / 2]) {
    const Matrix &a = *matrix[0], &b = *matrix[1];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      u32 place = stage_of<S>(step);
      share.template fetch<false>(a, b, q, step);
      if (step % 2 == 0) mbar_wait(full + 8 * place, parity);
      Left left;
      take_apart(left, share, a, b, step, p.zero);
      keep(left, !S::EXACT);
      WgRows rows_at = wg_tile(tiles, GROUP).on(place * STAGE + step % 2 * 64);
      if constexpr (S::SCALED) {
        step_of_planes<N>(share, a, b, step, rows_at, sums_in(p, row_sums, full), left, acc, []() {});
      } else {
        step_of_floats<N, S::EXACT>(rows_at, left, acc);
        wg_wait<0>();
#pragma unroll
        for (u32 j = 0; j < N / 2; j++) wg_keep(acc[j]);
      }
      if (step % 2 == 1) next_stage<S>(step);
    }
  }

  template <class S>
  DEV void run() {
    begin_pages<S>();
    pdl_wait();
    if (threadIdx.x == 0)
      for (u32 i = 0; i < min(p.stages, last); i++) bring<S>(i, i);
    float acc[N / 2] = {};
    S share;
    share.begin(*matrix[0], *matrix[1], p.part[0], q);
    u32 stretches = 0, until = stretch(1);
    wait_page<S>();
#pragma unroll 1
    for (u32 block = begin; block < end; block++) {
      u32 spans = pages + (page * 4 + half) * p.page;
      u32 sides[2] = {spans, spans + 2 * p.page};
      share.turn(*matrix[0], *matrix[1], sides, line.row, block, block == begin, q);
      if constexpr (N == 8) narrow(share, acc);
      else wide(share, acc);
      // Of planes a block has one.
      if (!S::SCALED && block + 1 == until && block + 1 < end) {
        put_sums<N>(acc, sums + stretches * N * sums_width(1), sums_width(1));
#pragma unroll
        for (u32 j = 0; j < N / 2; j++) acc[j] = 0.0f;
        until = stretch(++stretches + 1);
      }
      if ((block + 1) % S::BLOCKS == 0 && block + 1 < end) next_page<S>();
    }
    // The rings have served: no copy is on its way, and nobody reads them any more once all are here.
    __syncthreads();
    put_sums<N>(acc, sums + (each - 1) * N * sums_width(1), sums_width(1));
  }
};

// How weights are taken apart: the first that takes them.
template <u32 N, bool PICKED, class FIRST, class... REST>
DEV void gemm_few_as(const Gemm& p, Few<N, PICKED>& few) {
  // All parts of a product have the same planes, but codes of their own; of a tile they are the same for all of the block.
  if constexpr (sizeof...(REST) == 0) few.template run<FIRST>();
  else if (FIRST::takes(*few.matrix[0], *few.matrix[1], p.part[0])) few.template run<FIRST>();
  else gemm_few_as<N, PICKED, REST...>(p, few);
}
template <u32 N, bool PICKED, class... HOW>
DEV void gemm_few(const Gemm& p) {
  extern __shared__ u8 unaligned[];
  if (nobody_picked<N, PICKED>(p)) return;
  Few<N, PICKED> few(p, unaligned);
  few.begin_barriers();
  __syncthreads();
  pdl_launch_next();
  gemm_few_as<N, PICKED, HOW...>(p, few);
  finish_block<N, PICKED>(p, few.sums, few.each, blockIdx.y, 1);
}

// One kernel for up to 8 rows, one for up to 32, one for more; and of floats one for many more where a block has several
// stretches of inputs. Of planes sums of units are beside those of all, so that 64 rows are enough for a block.
template <u32 N, bool PICKED, int LO, int HI, u32... LOOKS>
DEV void planes_few(const Gemm& p) {
  gemm_few<N, PICKED, PlanesPage<LO, HI, LOOKS, N == 8 ? at_once(LO, HI, LOOKS) : 1>...>(p);
}
template <bool PICKED, bool TABLES, int LO, int HI, u32... LOOKS>
DEV void planes_many(const Gemm& p) {
  gemm_many<64, PICKED, PlanesAhead<LO, HI, LOOKS, TABLES>...>(p);
}
template <u32 N, bool PICKED, u32 KIND>
DEV void floats_few(const Gemm& p) {
  gemm_few<N, PICKED, FloatPage<KIND>>(p);
}
template <u32 N, bool PICKED, u32 KIND>
DEV void floats_many(const Gemm& p) {
  // Steps of weights that are on their way: as many as registers hold beside the sums.
  constexpr int SLOTS = KIND == F32 ? 1 : 2;
  gemm_many<N, PICKED, FloatShare<KIND, SLOTS>>(p);
}

#define ENTRY_FOR(THREADS, BLOCKS, NAME, ...) \
  KERNEL __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ Gemm p) { __VA_ARGS__; }
#define ENTRY_MANY(NAME, ...) ENTRY_FOR(MANY_THREADS, 2, NAME, __VA_ARGS__)
// Few rows are a warpgroup's.
#define ENTRY_FEW(NAME, ...) ENTRY_FOR(128, 4, NAME, __VA_ARGS__)
#endif
