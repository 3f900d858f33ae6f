// One row times weights: the decode step's product, for every format.
//
// A block has a stretch of all panels of the launch. A warp of its own, the producer, brings them
// into a ring in shared memory, page by page, and starts before the kernel waits for its
// predecessor, since weights depend on nothing: with programmatic launches the copies of a product
// overlap the end of the one before. On sm_90 a page is one bulk copy, elsewhere cp.async.
//
// Eight warps multiply. They share each panel: a lane keeps the columns of the row that are its own in
// registers, so that what is read from shared memory is weights alone. Rows of planes become integers of
// 16 bits (32 columns a scale: SPEC/cpu.md says why so many), so that the sums are exact. The last warp
// adds up what they summed, a chunk of panels at a time, always in one order.
//
// In a `CHAIN` of launches that are one kernel (chain.cu) ring and sums go on from one to the next.
#pragma once
#include "bits.cuh"

// One output of a chunk, and what becomes of it.
struct Output {
  // Whether it is a store, with a residual or without; whether it is a gate that is SiLU; whether its
  // residual may not be there yet.
  bool on, plain, gated, waits;
  u32 parts, col;
  // Panels, and outputs, up to which it goes on as it is.
  u32 until, rows;
  float early;
  float* out;
  const float* residual;
  const Epilogue* e;
  DEV void find(const Gemv& p, u32 panel, u32 row, u32 end) {
    on = panel < end, plain = gated = waits = false, parts = 1, col = rows = 0, until = ~0u, early = 0;
    out = nullptr, residual = nullptr, e = nullptr;
    if (!on) return;
    u32 d = domain_of(p, panel);
    const Domain& domain = p.domain[d];
    e = &domain.epilogue;
    col = (panel - p.first[d]) * PANEL + row;
    rows = p.part[domain.part[0]].rows, until = min(end, p.first[d + 1]);
    on = col < rows;
    parts = domain.parts;
    plain = e->form == STORE || e->form == RESIDUAL;
    gated = e->form == GATED && e->kind == SILU;
    out = e->out + col;
    if (!on || e->form != RESIDUAL) return;
    residual = e->residual.at + col;
    waits = e->residual.where == FRESH;
  }
  // The output of the next chunk.
  DEV void follow(const Gemv& p, u32 panel, u32 row, u32 end) {
    if (panel >= until) return find(p, panel, row, end);
    constexpr u32 STEP = CHUNK * PANEL;
    col += STEP, out += STEP;
    on = col < rows;
    if (residual) residual += STEP;
    if (!on) residual = nullptr, waits = false;
  }
  template <bool CHAIN>
  DEV void load_residual() {
    if (residual) early = CHAIN ? fresh_f32(residual) : cg_f32(residual);
  }
  // Until the number is there.
  DEV void settle() {
    while (waits && is_nobody(early)) early = fresh_f32(residual);
  }
};

// Of what a team summed: in pairs, and pairs of those.
DEV float sum_of(const float* from, u32 team) {
  float v[WARPS];
  *(float4*)v = *(const float4*)from, *(float4*)(v + 4) = *(const float4*)(from + 4);
  if (team < WARPS) {
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) v[w] = w < team ? v[w] : 0.0f;
  }
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// A warp of its own adds up what the others summed, and does what follows the product: of each chunk an output a lane.
// Nobody else works when it comes to the last chunk: what is usual has no branches.
template <bool CHAIN>
DEV void finish_chunks(const Gemv& p, Fresh f, Sums& sums, Turn& turn, float* regs, u32 lane) {
  static_assert(CHUNK * PANEL == 32, "an output a lane");
  u32 team = 1u << p.team;
  bool normed = p.norm != nullptr, rounds = CHAIN && p.leaves_integers;
  Stretch mine(p);
  // What becomes of an output is looked up before it is needed.
  Output of;
  of.find(p, mine.begin + lane / PANEL, lane % PANEL, mine.end);
  float scale = 1.0f, each = 1.0f / (float)p.cols, eps = p.eps;
  if (!CHAIN) pdl_launch_next(), pdl_wait();
  of.load_residual<CHAIN>();
#pragma unroll 1
  for (u32 chunk = mine.begin; chunk < mine.end; chunk += CHUNK) {
    u32 which = turn.which;
    bool gates = __any_sync(FULL, of.parts == 2), usual = of.plain || of.gated;
    bool others = __any_sync(FULL, of.on && !usual);
    const float* from = sums.part[which] + lane / PANEL * NEXT_PANEL + lane % PANEL * WARPS;
    sums.wait(turn);
    float v0 = sum_of(from, team), v1 = gates ? sum_of(from + WARPS * PANEL, team) : 0.0f;
    if (normed) {
      if (chunk == mine.begin) scale = rsqrtf(sum_of(sums.squares[which], team) * each + eps);
      v0 *= scale, v1 *= scale;
    }
    if constexpr (CHAIN) of.settle();
    float r = of.early + v0;
    if (of.gated) r = __fdividef(v0, 1.0f + __expf(-v0)) * v1;
    if (rounds) {
      // Gates, and all outputs of a chunk.
      if (!usual) r = unary(of.e->kind, v0, of.e->c, of.e->d) * v1;
      leave_integers(of.out - of.col, of.rows, of.col - lane, r, f.next, lane);
    } else if (of.on && usual) {
      if constexpr (CHAIN) leave(of.out, r, f.next);
      else __stcg(of.out, r);
    }
    if (others && of.on && !usual && !rounds) {
      const Epilogue& e = *of.e;
      // A chain has gates, and no byte code.
      if constexpr (CHAIN) leave(of.out, unary(e.kind, v0, e.c, e.d) * v1, f.next);
      else finish(e, 0, of.col, v0, of.parts == 2 ? v1 : v0, 0.0f, regs + lane, CHUNK * PANEL);
    }
    mbar_arrive(shared_address(sums.empty + which));
    turn.next();
    of.follow(p, chunk + CHUNK + lane / PANEL, lane % PANEL, mine.end);
    of.load_residual<CHAIN>();
  }
}

// Which panels of a page are a warp's, and where their sums go.
struct Place {
  u32 group, groups, member;
  float* sums;
  // Whether they are added to those of other passes.
  bool again;
};
// A page, and those after it that are like it: few instructions, which stay near. Whether a chunk ends.
template <class F, Path PATH, bool CHAIN>
DEV bool multiply_pages(const Matrix& m, Ring& ring, Page& page, const typename F::Lane& at, const typename F::Unit& x,
                        const Place& to, u32 lane) {
#pragma unroll 1
  while (true) {
    F::template multiply<PATH, CHAIN>(m, ring.there(page), page.slice, to.group, to.groups, page.n(), at, x, to.again,
                                      to.sums + page.to + to.member, lane);
    ring.done();
    if (page.what & ENDS) return true;
    u32 what = page.what >> PASS;
    page = ring.page();
    if (page.what >> PASS != what) return false;
  }
}

// What a warp multiplies; `words` are its own.
template <class F, bool CHAIN>
DEV void consume(const Gemv& p, Fresh f, Ring& ring, Sums& sums, Turn& turn, uint4* words, u32 thread) {
  u32 warp = thread / 32, lane = thread % 32;
  u32 team = p.team, member = warp & ((1u << team) - 1), group = warp >> team, groups = WARPS >> team;
  u32 per_pass = F::WARP_UNITS << team, unit = member * F::WARP_UNITS;
  // From here on all has a value: what had none on some way would be kept for it through a whole chain.
  float4 v[F::QUADS] = {}, norm[F::QUADS] = {};
  const float *in = p.x, *weights = AS_INTEGERS<F> ? nullptr : p.norm;
  u32 passes = p.passes, cols = p.cols;
  auto load_norm = [&](u32 pass) {
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) norm[q] = quad_of<F::WHOLE>(weights, F::column(pass * per_pass + unit, q, lane, cols), cols);
  };
  auto load = [&](u32 pass, bool all) {
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) {
      u32 c = F::column(pass * per_pass + unit, q, lane, cols);
      if (!all && !is_nobody(v[q])) continue;
      if constexpr (CHAIN) v[q] = c + 4 <= cols ? fresh_f32x4(in + c) : make_float4(0, 0, 0, 0);
      else v[q] = quad_of<F::WHOLE>(in, c, cols);
    }
  };
  // Until all numbers are there.
  auto settle = [&](u32 pass) {
    for (bool watched = false;; watched = true) {
      bool there = true;
#pragma unroll
      for (u32 q = 0; q < F::QUADS; q++) there &= !is_nobody(v[q]);
      if (__all_sync(FULL, there)) return;
      if (!watched) watch(in + F::column(pass * per_pass + unit, 0, 0, cols));
      load(pass, false);
    }
  };
  // Weights are nobody's output: where they are, and those of the norm, may be known early.
  bool comes = CHAIN && weights && norm_comes(p);
  if (weights && !comes) load_norm(0);
  if (!CHAIN) pdl_launch_next();
  Stretch mine(p);
  if (!CHAIN) pdl_wait();
  if (mine.begin >= mine.end) return;
  // Integers take no registers before they are needed: most of them would not be there yet.
  if (!AS_INTEGERS<F>) load(0, true);
  if (comes) {
    const float* page = (const float*)ring.there(ring.page());
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) {
      u32 c = F::column(unit, q, lane, cols);
      if (c + 4 <= cols) norm[q] = *(const float4*)(page + c);
    }
    ring.done();
  }
  typename F::Lane at = {};
  typename F::Unit x = {};
  bool first = true;
  u32 now = ~0u, found = ~0u;
  float sum = 0;
#pragma unroll 1
  while (true) {
    Page page = ring.page();
    u32 pass = page.what >> PASS & 0xffff, which = turn.which;
    // What can be done before the row is there.
    const Matrix& m = p.part[page.what >> MATRIX];
    // All passes find a part in the same way but for the last, which may be shorter.
    u32 how = page.what >> MATRIX << 1 | ((pass + 1) * per_pass > m.units ? 1 : 0);
    if (how != found) found = how, at.find(m, pass * per_pass, member, lane);
    if (page.what & BEGINS) mbar_wait(shared_address(sums.empty + which), turn.parity);
    if (pass != now) {
      now = pass;
      if constexpr (AS_INTEGERS<F>) {
        if (m.units > pass * per_pass + unit) watch(in + F::column(pass * per_pass + unit, 0, 0, cols));
        load(pass, true);
      }
      if (CHAIN && f.polls) settle(pass);
      if (weights) {
        // The norm's own factor is for the sums.
#pragma unroll
        for (u32 q = 0; q < F::QUADS; q++) {
          if (first) sum += square(v[q]);
          v[q] = times(v[q], norm[q]);
        }
        if (first && pass + 1 == passes) {
          sum = warp_sum(sum);
          if (lane == 0) sums.squares[which][warp] = sum;
        }
      }
      x.make(v, words, lane);
      // The next pass's columns come while this one's are multiplied.
      u32 next = pass + 1 == passes ? 0 : pass + 1;
      if (!AS_INTEGERS<F> && next != now) {
        if (weights) load_norm(next);
        load(next, true);
      }
    }
    Place to = {group, groups, member, sums.part[which], pass != 0};
#define MULTIPLY(PATH) multiply_pages<F, PATH, CHAIN>(m, ring, page, at, x, to, lane)
#define OR_BY(PATH) F::has(PATH) && at.path == PATH ? MULTIPLY(PATH) :
    bool ends = OR_BY(ONE_SCALE) OR_BY(ONE_AND_MIN) OR_BY(SCALE_AND_MIN) OR_BY(HALVES) OR_BY(HALVES_AND_MIN) OR_BY(ENTRIES) MULTIPLY(REST<F>);
#undef OR_BY
#undef MULTIPLY
    if (!ends) continue;
    first = false;
    sums.done(which);
    turn.next();
    if (page.what & ENDS_ALL) break;
  }
}

// By counting bits, where these planes can be and the launch's weights are such as to be.
template <class F, bool CHAIN>
DEV void consume_either(const Gemv& p, Fresh f, Ring& ring, Sums& sums, Turn& turn, uint4* words, u32 thread) {
  if constexpr (Counted<F>::POSSIBLE) {
    if (p.part[0].halves == 0) return consume<typename Counted<F>::By, CHAIN>(p, f, ring, sums, turn, words, thread);
  }
  consume<F, CHAIN>(p, f, ring, sums, turn, words, thread);
}

template <class F>
DEV void gemv(const Gemv& p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Sums sums;
  __shared__ float regs[MAX_REGISTERS * CHUNK * PANEL];
  __shared__ uint4 words[F::WHOLE ? WARPS * 32 : 1];
  __shared__ __align__(16) Page said[PAGES];
  __shared__ u64 full[PAGES], empty[PAGES];
  if (threadIdx.x < PAGES) {
    mbar_init(shared_address(full + threadIdx.x), HOPPER ? 1 : 33);
    mbar_init(shared_address(empty + threadIdx.x), WARP_ARRIVALS * WARPS);
  } else if (threadIdx.x >= 32 && threadIdx.x < 34) {
    sums.begin(threadIdx.x - 32);
  }
#if HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncthreads();
  u32 warp = threadIdx.x / 32;
  Ring ring = {shared, said, full, empty, 0, 0};
  Turn turn;
  Filling filling(ring, p.ring, threadIdx.x % 32);
  if (warp == WARPS) produce<false>(p, filling);
  else if (warp > WARPS) finish_chunks<false>(p, Fresh{}, sums, turn, regs, threadIdx.x % 32);
  else consume_either<F, false>(p, Fresh{}, ring, sums, turn, words + (F::WHOLE ? warp * 32 : 0), threadIdx.x);
}
