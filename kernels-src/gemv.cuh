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
  bool on;
  u32 form, kind, parts, col;
  float early;
  float* out;
  const float* residual;
  const Epilogue* e;
  DEV void find(const Gemv& p, u32 panel, u32 row, u32 end) {
    on = panel < end;
    if (!on) return;
    u32 d = domain_of(p, panel);
    const Domain& domain = p.domain[d];
    e = &domain.epilogue;
    col = (panel - p.first[d]) * PANEL + row;
    on = col < p.part[domain.part[0]].rows;
    parts = domain.parts;
    form = e->form;
    kind = e->kind;
    out = e->out + col;
    residual = e->residual.at + col;
  }
  DEV void load_residual() {
    if (on && form == RESIDUAL) early = cg_f32(residual);
  }
  DEV void put(float v0, float v1, float* regs) const {
    if (form == STORE) {
      __stcg(out, v0);
    } else if (form == RESIDUAL) {
      __stcg(out, early + v0);
    } else if (form == GATED && kind == SILU) {
      __stcg(out, v0 / (1.0f + expf(-v0)) * v1);
    } else {
      finish(*e, 0, col, v0, parts == 2 ? v1 : v0, 0.0f, regs, CHUNK * PANEL);
    }
  }
};

// A warp of its own adds up what the others summed, and does what follows the product.
DEV void finish_chunks(const Gemv& p, Sums& sums, float* regs) {
  constexpr u32 EACH = CHUNK * PANEL / 32;
  u32 lane = threadIdx.x % 32, team = 1u << p.team, which = 0, parity = 0;
  Stretch mine(p);
  Output of[EACH];
  // What becomes of the outputs is looked up before it is needed.
  auto find = [&](u32 chunk) {
#pragma unroll
    for (u32 i = 0; i < EACH; i++) of[i].find(p, chunk + (i * 32 + lane) / PANEL, lane % PANEL, mine.end);
  };
  auto load = [&]() {
#pragma unroll
    for (u32 i = 0; i < EACH; i++) of[i].load_residual();
  };
  find(mine.begin);
  pdl_launch_next();
  pdl_wait();
  load();
#pragma unroll 1
  for (u32 chunk = mine.begin; chunk < mine.end; chunk += CHUNK) {
    barrier_wait(sums.full + which, parity);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
      if (!of[i].on) continue;
      const float* from = sums.part[which] + (i * 32 + lane) / PANEL * NEXT_PANEL + lane % PANEL;
      float v0 = 0, v1 = 0;
#pragma unroll
      for (u32 w = 0; w < WARPS; w++) {
        if (w >= team) break;
        v0 += from[w * PANEL];
        if (of[i].parts == 2) v1 += from[(WARPS + w) * PANEL];
      }
      of[i].put(v0, v1, regs + i * 32 + lane);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(sums.empty + which);
    if (which) parity ^= 1;
    which ^= 1;
    find(chunk + CHUNK);
    load();
  }
}

template <class F>
DEV void consume(const Gemv& p, Ring ring, Sums& sums, float* squares) {
  constexpr bool WHOLE = F::WARP_UNITS == 8;
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, passes = p.passes, batch = p.batch, cols = p.cols;
  u32 team = p.team, member = warp & ((1u << team) - 1), group = warp >> team, groups = WARPS >> team;
  u32 per_pass = F::WARP_UNITS << team, unit = member * F::WARP_UNITS + lane % F::WARP_UNITS;
  float4 v[F::QUADS], norm[F::QUADS];
  auto load_norm = [&](u32 pass) {
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) norm[q] = quad_of<WHOLE>(p.norm, F::column(pass * per_pass + unit, q, lane), cols);
  };
  auto load = [&](u32 pass) {
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) v[q] = quad_of<WHOLE>(p.x, F::column(pass * per_pass + unit, q, lane), cols);
  };
  // Weights are nobody's output: where they are, and those of the norm, may be known early.
  Stretch mine(p);
  typename F::Lane at;
  u32 d0 = mine.begin < mine.end ? domain_of(p, mine.begin) : 0, found = d0 * 2;
  at.find(p.part[p.domain[d0].part[0]], 0, member);
  if (p.norm) load_norm(0);
  pdl_launch_next();
  pdl_wait();
  load(0);
  float scale = 1.0f;
  if (p.norm) {
    float sum = 0;
#pragma unroll
    for (u32 q = 0; q < F::QUADS; q++) sum += square(v[q]);
#pragma unroll 1
    for (u32 i = F::QUADS; i < passes * F::QUADS; i++)
      sum += square(quad_of<WHOLE>(p.x, F::column(i / F::QUADS * per_pass + unit, i % F::QUADS, lane), cols));
    sum = warp_sum(sum);
    if (lane == 0) squares[warp] = sum;
    meet();
    if (groups == 1) {
      float4 a = *(const float4*)squares, b = *(const float4*)(squares + 4);
      sum = (a.x + a.y + a.z + a.w) + (b.x + b.y + b.z + b.w);
    } else {
      sum = 0;
      for (u32 i = 0; i < 1u << team; i++) sum += squares[(group << team) + i];
    }
    scale = rsqrtf(sum / (float)cols + p.eps);
  }
  typename F::Unit x;
  u32 now = ~0u, which = 0, parity = 0;
#pragma unroll 1
  for (u32 chunk = mine.begin; chunk < mine.end; chunk += CHUNK) {
    u32 stop = min(mine.end, chunk + CHUNK);
    // At first both are free.
    barrier_wait(sums.empty + which, parity ^ 1);
#pragma unroll 1
    for (u32 pass = 0; pass < passes; pass++) {
      if (pass != now) {
        now = pass;
        if (p.norm) {
#pragma unroll
          for (u32 q = 0; q < F::QUADS; q++) v[q] = scaled(v[q], scale, norm[q]);
        }
        x.make(v);
        // The next pass's columns come while this one's are multiplied.
        u32 next = pass + 1 == passes ? 0 : pass + 1;
        if (next != now) {
          if (p.norm) load_norm(next);
          load(next);
        }
      }
#pragma unroll 1
      for (u32 i = chunk; i < stop;) {
        u32 d = domain_of(p, i), until = min(stop, p.first[d + 1]), parts = p.domain[d].parts;
        u32 both = p.domain[d].alike;
#pragma unroll 1
        while (i < until) {
          u32 n = min(batch, until - i);
#pragma unroll 1
          for (u32 part = 0; part < parts; part++) {
            const Matrix& m = p.part[p.domain[d].part[part]];
            u32 wanted = (pass * MAX_DOMAINS + d) * 2 + (both ? 0 : part);
            if (wanted != found) at.find(m, pass * per_pass, member), found = wanted;
            u32 slice = slice_bytes<F>(p, m);
            float* to = sums.part[which] + (((i - chunk) * 2 + part) * WARPS + member) * PANEL;
            barrier_wait(ring.full + ring.at, ring.parity);
            F::multiply(m, ring.page(), slice, group, groups, n, at, x, pass != 0, to);
            // All lanes have read the page before it is overwritten.
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.empty + ring.at);
            ring.next();
          }
          i += n;
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(sums.full + which);
    if (which) parity ^= 1;
    which ^= 1;
  }
}

template <class F>
DEV void gemv(const Gemv& p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ Sums sums;
  __shared__ float regs[MAX_REGISTERS * CHUNK * PANEL];
  __shared__ __align__(16) float squares[WARPS];
  __shared__ u64 full[MAX_STAGES], empty[MAX_STAGES];
  if (threadIdx.x < p.stages) {
    barrier_init(full + threadIdx.x, HOPPER ? 1 : 32);
    barrier_init(empty + threadIdx.x, WARPS);
  } else if (threadIdx.x >= 32 && threadIdx.x < 34) {
    barrier_init(sums.full + threadIdx.x - 32, WARPS);
    barrier_init(sums.empty + threadIdx.x - 32, 1);
  }
#if HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncthreads();
  u32 warp = threadIdx.x / 32;
  Ring ring = {shared, full, empty, p.stages, p.stage_bytes, 0, 0};
  if (warp == WARPS) produce<F>(p, ring);
  else if (warp > WARPS) finish_chunks(p, sums, regs);
  else consume<F>(p, ring, sums, squares);
}
