// One row times weights: the decode step's product, for every format.
//
// A block has a stretch of all panels of the launch. A warp of its own, the producer, brings them
// into a ring in shared memory, page by page, and starts before the kernel waits for its
// predecessor, since weights depend on nothing: with programmatic launches the copies of a product
// overlap the end of the one before. On sm_90 a page is one bulk copy, elsewhere cp.async.
//
// Eight warps multiply. They share each panel: a lane keeps the columns of the row that
// are its own in registers, so that what is read from shared memory is weights alone. Rows of planes
// are taken apart into integers of two int8 digits (q = 255 high + low, 32 columns a scale:
// SPEC/cpu.md says why two), so that the sums are exact integers. The last warp adds up what they
// summed, a chunk of panels at a time, always in one order.
#pragma once
#include "units.cuh"

// One output of a chunk, and what becomes of it.
struct Output {
  // Whether it is a store, with a residual or without; whether it is a gate that is SiLU.
  bool on, plain, gated;
  u32 parts, col;
  float early;
  const Epilogue* e;
  DEV void find(const Gemv& p, u32 panel, u32 row, u32 end) {
    on = panel < end, plain = gated = false, parts = 1, early = 0;
    if (!on) return;
    u32 d = domain_of(p, panel);
    const Domain& domain = p.domain[d];
    e = &domain.epilogue;
    col = (panel - p.first[d]) * PANEL + row;
    on = col < p.part[domain.part[0]].rows;
    parts = domain.parts;
    plain = e->form == STORE || e->form == RESIDUAL;
    gated = e->form == GATED && e->kind == SILU;
  }
  DEV void load_residual() {
    if (on && e->form == RESIDUAL) early = cg_f32(e->residual.at + col);
  }
};

// Of what a team summed, one after the other.
DEV float sum_of(const float* from, u32 team) {
  float v[WARPS];
#pragma unroll
  for (u32 w = 0; w < WARPS; w++) v[w] = w < team ? from[w * PANEL] : 0.0f;
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// A warp of its own adds up what the others summed, and does what follows the product. Nobody else
// works when it comes to the last chunk: what is usual has no branches.
DEV void finish_chunks(const Gemv& p, Sums& sums, const float* squares, float* regs) {
  constexpr u32 EACH = CHUNK * PANEL / 32;
  u32 lane = threadIdx.x % 32, team = 1u << p.team, which = 0;
  Stretch mine(p);
  Output of[EACH];
  bool gates, others;
  // What becomes of the outputs is looked up before it is needed.
  auto find = [&](u32 chunk) {
    gates = others = false;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
      of[i].find(p, chunk + (i * 32 + lane) / PANEL, lane % PANEL, mine.end);
      gates |= of[i].parts == 2;
      others |= of[i].on && !of[i].plain && !of[i].gated;
    }
    gates = __any_sync(FULL, gates), others = __any_sync(FULL, others);
  };
  auto load = [&]() {
#pragma unroll
    for (u32 i = 0; i < EACH; i++) of[i].load_residual();
  };
  find(mine.begin);
  float scale = 1.0f, each = 1.0f / (float)p.cols;
  pdl_launch_next();
  pdl_wait();
  load();
#pragma unroll 1
  for (u32 chunk = mine.begin; chunk < mine.end; chunk += CHUNK) {
    float v0[EACH], v1[EACH] = {};
    const float* from = sums.part[which] + lane / PANEL * NEXT_PANEL + lane % PANEL;
    summed(which);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) v0[i] = sum_of(from + i * 32 / PANEL * NEXT_PANEL, team);
    if (gates) {
#pragma unroll
      for (u32 i = 0; i < EACH; i++) v1[i] = sum_of(from + i * 32 / PANEL * NEXT_PANEL + WARPS * PANEL, team);
    }
    if (p.norm) {
      if (chunk == mine.begin) {
        float s[WARPS];
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) s[w] = w < team ? squares[w] : 0.0f;
        scale = rsqrtf((((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))) * each + p.eps);
      }
#pragma unroll
      for (u32 i = 0; i < EACH; i++) v0[i] *= scale, v1[i] *= scale;
    }
    float r[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) r[i] = of[i].early + v0[i];
    if (gates) {
#pragma unroll
      for (u32 i = 0; i < EACH; i++)
        if (of[i].gated) r[i] = __fdividef(v0[i], 1.0f + __expf(-v0[i])) * v1[i];
    }
#pragma unroll
    for (u32 i = 0; i < EACH; i++)
      if (of[i].on && (of[i].plain || of[i].gated)) __stcg(of[i].e->out + of[i].col, r[i]);
    if (others) {
#pragma unroll
      for (u32 i = 0; i < EACH; i++)
        if (of[i].on && !of[i].plain && !of[i].gated)
          finish(*of[i].e, 0, of[i].col, v0[i], of[i].parts == 2 ? v1[i] : v0[i], 0.0f, regs + i * 32 + lane, CHUNK * PANEL);
    }
    barrier_arrive(sums.empty + which);
    which ^= 1;
    find(chunk + CHUNK);
    load();
  }
}

// What a warp multiplies.
template <class F>
DEV void consume(const Gemv& p, Ring ring, Sums& sums, float* squares, uint4* words) {
  constexpr bool WHOLE = F::WARP_UNITS == 8;
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 team = p.team, member = warp & ((1u << team) - 1), group = warp >> team, groups = WARPS >> team;
  u32 per_pass = F::WARP_UNITS << team, unit = member * F::WARP_UNITS + lane % F::WARP_UNITS;
  float4 v[F::QUADS], norm[F::QUADS];
  auto load_norm = [&](u32 pass) {
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) norm[q] = quad_of<WHOLE>(p.norm, F::column(pass * per_pass + unit, q, lane), p.cols);
  };
  auto load = [&](u32 pass) {
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) v[q] = quad_of<WHOLE>(p.x, F::column(pass * per_pass + unit, q, lane), p.cols);
  };
  // Weights are nobody's output: where they are, and those of the norm, may be known early.
  if (p.norm) load_norm(0);
  pdl_launch_next();
  Stretch mine(p);
  pdl_wait();
  if (mine.begin >= mine.end) return;
  load(0);
  typename F::Lane at;
  typename F::Unit x;
  bool first = true;
  u32 now = ~0u, found = ~0u, which = 0, parity = 1;
  float sum = 0;
#pragma unroll 1
  while (true) {
    barrier_wait(ring.full + ring.at, ring.parity);
    Page page = ring.said[ring.at];
    u32 pass = page.what >> PASS & 0xffff;
    if (pass != now) {
      now = pass;
      if (p.norm) {
        // The norm's own factor is for the sums.
#pragma unroll
        for (u32 q = 0; q < F::QUADS; q++) {
          if (first) sum += square(v[q]);
          v[q] = times(v[q], norm[q]);
        }
      }
      x.make(v, words + warp * 32);
      // The next pass's columns come while this one's are multiplied.
      u32 next = pass + 1 == p.passes ? 0 : pass + 1;
      if (next != now) {
        if (p.norm) load_norm(next);
        load(next);
      }
    }
    const Matrix& m = p.part[page.what >> MATRIX];
    if (page.what >> PASS != found) found = page.what >> PASS, at.find(m, pass * per_pass, member);
    // At first both sums are free.
    if (page.what & BEGINS) barrier_wait(sums.empty + which, parity);
    F::multiply(m, ring.page(), page.slice, group, groups, page.n, at, x, pass != 0,
                sums.part[which] + page.to + member * PANEL);
    // All lanes have read the page before it is overwritten.
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.empty + ring.at);
    ring.next();
    if (!(page.what & ENDS)) continue;
    if (p.norm && first) {
      sum = warp_sum(sum);
      if (lane == 0) squares[warp] = sum;
    }
    first = false;
    sum_up(which);
    if (page.what & ENDS_ALL) break;
    if (which) parity ^= 1;
    which ^= 1;
  }
}

template <class F>
DEV void gemv(const Gemv& p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Sums sums;
  __shared__ float regs[MAX_REGISTERS * CHUNK * PANEL];
  __shared__ uint4 words[F::WARP_UNITS == 8 ? WARPS * 32 : 1];
  __shared__ float squares[WARPS];
  __shared__ __align__(16) Page said[MAX_STAGES];
  __shared__ u64 full[MAX_STAGES], empty[MAX_STAGES];
  if (threadIdx.x < p.stages) {
    barrier_init(full + threadIdx.x, HOPPER ? 1 : 33);
    barrier_init(empty + threadIdx.x, WARPS);
  } else if (threadIdx.x >= 32 && threadIdx.x < 34) {
    barrier_init(sums.empty + threadIdx.x - 32, 32);
  }
#if HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncthreads();
  u32 warp = threadIdx.x / 32;
  Ring ring = {shared, said, full, empty, p.stages, p.stage_bytes, 0, 0};
  if (warp == WARPS) produce<F>(p, ring);
  else if (warp > WARPS) finish_chunks(p, sums, squares, regs);
  else consume<F>(p, ring, sums, squares, words);
}
