// One row times weights: the decode step's product, for every format.
//
// Weights stream through rings in shared memory. Every warp has a ring of its own and takes panels
// of 4 outputs, all panels of the launch dealt out over all warps of the chip; so warps never wait
// for each other. Where there are too few panels for that, several warps share one, and the block
// adds up at the end. A ring is filled *before* the kernel waits for its predecessor, since weights
// depend on nothing: with programmatic launches the copies of this product overlap the end of the
// one before. On sm_90 a page is one bulk copy, elsewhere 16 bytes a lane of cp.async.
//
// The row is read once a block: normed if the product has a norm for prologue, then taken apart for
// planes into integers of two int8 digits (q = 255 high + low, 32 columns a scale: SPEC/cpu.md says
// why two) so that the sums are exact integers, or kept in f32 for floats.
#pragma once
#include "epilogue.cuh"
#include "layout.cuh"

struct Domain {
  u32 parts;
  u32 part[2];
  // Spans of a page of each part.
  u32 page[2];
  u32 unused;
  Epilogue epilogue;
};

struct Gemv {
  const float* x;
  // Weights of the norm that is the prologue; null for none.
  const float* norm;
  float eps;
  u32 cols, domains, stages, stage_bytes;
  // Warps that share a panel, a stretch of the inputs each, as a power of two; rings of a block.
  u32 share, rings, unused;
  // Panels before each domain; the last entry counts all.
  u32 first[MAX_DOMAINS + 1];
  Domain domain[MAX_DOMAINS];
  Matrix part[2 * MAX_DOMAINS];
};
static_assert(sizeof(Gemv) == 2776, "src/cuda/abi.rs mirrors it");

// Rings of fixed depth where completion is counted in groups.
constexpr u32 PLAIN_STAGES = 3;

// A place in a warp's string of pages.
struct Cursor {
  u32 panel_of_all, domain, panel, part, span, slice;
};
// The spans of a part that a slice takes.
DEV u32 slice_begin(const Gemv& p, const Matrix& m, u32 slice) { return m.spans * slice >> p.share; }
DEV void seek(const Gemv& p, Cursor& c) {
  c.domain = 0;
  while (c.domain + 1 < p.domains && c.panel_of_all >= p.first[c.domain + 1]) c.domain++;
  c.panel = c.panel_of_all - p.first[c.domain];
  c.part = 0;
  c.span = slice_begin(p, p.part[p.domain[c.domain].part[0]], c.slice);
}
DEV bool at_end(const Gemv& p, const Cursor& c) { return c.panel_of_all >= p.first[p.domains]; }
DEV void next_page(const Gemv& p, Cursor& c) {
  const Domain& d = p.domain[c.domain];
  c.span += d.page[c.part];
  if (c.span < slice_begin(p, p.part[d.part[c.part]], c.slice + 1)) return;
  if (++c.part < d.parts) {
    c.span = slice_begin(p, p.part[d.part[c.part]], c.slice);
    return;
  }
  c.panel_of_all += gridDim.x * (WARPS >> p.share);
  seek(p, c);
}

#if HOPPER
DEV void barrier_init(u64* b) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(b)) : "memory");
}
DEV void barrier_wait(u64* b, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(shared_address(b)), "r"(parity)
      : "memory");
}
#endif

// Asks for the page at `c`.
DEV void fetch(const Gemv& p, const Cursor& c, u8* stage, u64* full, u32 lane) {
  const Domain& d = p.domain[c.domain];
  const Matrix& m = p.part[d.part[c.part]];
  u32 from = c.span * m.span_bytes;
  u32 end = min(c.span + d.page[c.part], slice_begin(p, m, c.slice + 1));
  u32 bytes = (end == m.spans ? m.panel_bytes : end * m.span_bytes) - from;
  const u8* src = m.data + (u64)c.panel * m.panel_bytes + from;
#if HOPPER
  if (lane == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(full)),
                 "r"(bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(stage)),
        "l"(src), "r"(bytes), "r"(shared_address(full))
        : "memory");
  }
#else
  for (u32 i = lane * 16; i < bytes; i += 512)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(stage + i)),
                 "l"(src + i)
                 : "memory");
#endif
}

// The row in shared memory: for planes 5 pieces of 16 bytes a unit, `[piece][unit]`: high digits,
// low digits, {scale, sum of the first 16, of the second 16}. For floats `[piece][unit]` of f32.
template <class F>
DEV void prepare_row(const Gemv& p, u8* xs, float* shared32) {
  constexpr u32 KEEP = 4;
  u32 lane = threadIdx.x % 32, cols = p.cols, units = p.part[0].units;
  bool normed = p.norm != nullptr;
  // The norm's weights are nobody's output: they may come early.
  float4 nw[KEEP], xr[KEEP];
  bool whole = cols % 4 == 0;
#pragma unroll
  for (u32 i = 0; i < KEEP; i++) {
    u32 c = (i * 256 + threadIdx.x) * 4;
    nw[i] = make_float4(1, 1, 1, 1);
    if (normed && whole && c < cols) nw[i] = *(const float4*)(p.norm + c);
  }
  pdl_wait();
  auto load = [&](u32 c) {
    if (whole) return c < cols ? cg_f32x4(p.x + c) : make_float4(0, 0, 0, 0);
    float4 v = make_float4(0, 0, 0, 0);
    if (c < cols) v.x = cg_f32(p.x + c);
    if (c + 1 < cols) v.y = cg_f32(p.x + c + 1);
    if (c + 2 < cols) v.z = cg_f32(p.x + c + 2);
    if (c + 3 < cols) v.w = cg_f32(p.x + c + 3);
    return v;
  };
  float scale = 1.0f;
#pragma unroll
  for (u32 i = 0; i < KEEP; i++) xr[i] = load((i * 256 + threadIdx.x) * 4);
  if (normed) {
    float sum = 0;
    auto add = [&](float4 v) { sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
#pragma unroll
    for (u32 i = 0; i < KEEP; i++) add(xr[i]);
    for (u32 c = (KEEP * 256 + threadIdx.x) * 4; c < cols; c += 1024) add(load(c));
    sum = block_sum(sum, shared32);
    scale = 1.0f / sqrtf(sum / (float)cols + p.eps);
  }
  u32 all = (units * F::UNIT + 3) / 4;
  auto put = [&](u32 quad_of_row, float4 v, float4 w) {
    u32 c = quad_of_row * 4;
    if (normed) {
      if (!whole) {
        w.x = c < cols ? p.norm[c] : 0.0f;
        w.y = c + 1 < cols ? p.norm[c + 1] : 0.0f;
        w.z = c + 2 < cols ? p.norm[c + 2] : 0.0f;
        w.w = c + 3 < cols ? p.norm[c + 3] : 0.0f;
      }
      v.x = v.x * scale * w.x;
      v.y = v.y * scale * w.y;
      v.z = v.z * scale * w.z;
      v.w = v.w * scale * w.w;
    }
    F::put_quad(xs, units, quad_of_row, all, v, lane);
  };
#pragma unroll
  for (u32 i = 0; i < KEEP; i++)
    if (i * 256 < all) put(i * 256 + threadIdx.x, xr[i], nw[i]);
  for (u32 base = KEEP * 256; base < all; base += 256) {
    u32 q = base + threadIdx.x;
    float4 w = make_float4(1, 1, 1, 1);
    if (normed && whole && q * 4 < cols) w = *(const float4*)(p.norm + q * 4);
    put(q, load(q * 4), w);
  }
  __syncthreads();
}

// Planes of LO and HI bits.
template <int LO, int HI>
struct Planes {
  static constexpr u32 UNIT = 32;

  // Four columns a lane; the eight lanes of a unit agree on its scale.
  static DEV void put_quad(u8* xs, u32 units, u32 q, u32 all, float4 v, u32 lane) {
    u32 most = max(max(__float_as_uint(v.x) & 0x7fffffff, __float_as_uint(v.y) & 0x7fffffff),
                   max(__float_as_uint(v.z) & 0x7fffffff, __float_as_uint(v.w) & 0x7fffffff));
#pragma unroll
    for (int o = 1; o < 8; o <<= 1) most = max(most, __shfl_xor_sync(FULL, most, o));
    float m = __uint_as_float(most);
    // NaN and infinity make the scale NaN; what is too small to divide by makes it 0.
    bool finite = most < 0x7f800000u, some = m > 1e-30f;
    float inverse = finite && some ? 32512.0f / m : 0.0f;
    float scale = !finite ? __uint_as_float(0x7fc00000u) : some ? m / 32512.0f : 0.0f;
    float in[4] = {v.x, v.y, v.z, v.w};
    u32 high = 0, low = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int n = finite ? __float2int_rn(in[i] * inverse) : 0;
      int h = __float2int_rn((float)n * (1.0f / 255.0f));
      high |= (u32)(h & 0xff) << (8 * i);
      low |= (u32)((n - 255 * h) & 0xff) << (8 * i);
      sum += n;
    }
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    int other = __shfl_xor_sync(FULL, sum, 4);
    if (q >= all) return;
    u32 unit = q / 8, i = q % 8;
    *(u32*)(xs + ((i / 4) * units + unit) * 16 + (i % 4) * 4) = high;
    *(u32*)(xs + ((2 + i / 4) * units + unit) * 16 + (i % 4) * 4) = low;
    if (i == 0) {
      uint4 meta = make_uint4(__float_as_uint(scale), (u32)sum, (u32)other, 0);
      *(uint4*)(xs + (4 * units + unit) * 16) = meta;
    }
  }

  // Adds the products of a span to the four outputs' sums.
  static DEV void span(const Matrix& m, const u8* page, u32 span, u32 n, const u8* xs, u32 lane,
                       float* acc) {
    if (lane >= n) return;
    // The commonest scales, a constant zero and no second level, have a path without questions.
    if (m.levels == LEVEL_ONE && m.min == ZERO && m.codes == PLAIN)
      dots<true>(m, page, span, n, xs, lane, acc);
    else
      dots<false>(m, page, span, n, xs, lane, acc);
  }

  template <bool SIMPLE>
  static DEV void dots(const Matrix& m, const u8* page, u32 span, u32 n, const u8* xs, u32 lane,
                       float* acc) {
    u32 units = m.units, unit = span * SPAN + lane;
    const uint4* x = (const uint4*)xs + unit;
    uint4 h0 = x[0], h1 = x[units], l0 = x[2 * units], l1 = x[3 * units], meta = x[4 * units];
    u32 high[8] = {h0.x, h0.y, h0.z, h0.w, h1.x, h1.y, h1.z, h1.w};
    u32 low[8] = {l0.x, l0.y, l0.z, l0.w, l1.x, l1.y, l1.z, l1.w};
    float scale = __uint_as_float(meta.x);
    int sum0 = (int)meta.y, sum1 = (int)meta.z;
    int zero0 = m.zero * sum0, zero1 = m.zero * sum1;
    const u8* hi_at = page + PANEL * n * 4 * LO;
    const u8* d = hi_at + PANEL * n * 4 * HI + 2 * lane;
#pragma unroll
    for (u32 r = 0; r < PANEL; r++) {
      u32 lo[LO], hi[HI ? HI : 1];
      load_plane<LO>(page, r, n, lane, lo);
      if constexpr (HI != 0) load_plane<HI>(hi_at, r, n, lane, hi);
      int dh0 = 0, dl0 = 0, dh1 = 0, dl1 = 0;
#pragma unroll
      for (int q = 0; q < 8; q++) {
        u32 c = quad<LO>(lo, q);
        if constexpr (HI != 0) c |= quad<HI>(hi, q) << LO;
        if (!SIMPLE && LO == 4 && HI == 0 && m.codes == TABLE) c = look_up(m.table, c);
        if (q < 4 || SIMPLE) {
          dh0 = dot4(c, high[q], dh0);
          dl0 = dot4(c, low[q], dl0);
        } else {
          dh1 = dot4(c, high[q], dh1);
          dl1 = dot4(c, low[q], dl1);
        }
      }
      if constexpr (SIMPLE) {
        float s = half_to_f32(*(const u16*)(d + 2 * r * n)) * scale;
        acc[r] += s * (float)(255 * dh0 + dl0 - (zero0 + zero1));
        continue;
      }
      int t0 = 255 * dh0 + dl0, t1 = 255 * dh1 + dl1;
      if (LO == 1 && HI == 0 && m.codes == DOUBLE) t0 *= 2, t1 *= 2;
      t0 -= zero0, t1 -= zero1;
      Scales s = scales_of(m, page, n, r, lane);
      float f = m.halves == 2 ? s.s0 * (float)t0 + s.s1 * (float)t1 : s.s0 * (float)(t0 + t1);
      if (m.min != ZERO)
        f += m.halves == 2 ? s.m0 * (float)sum0 + s.m1 * (float)sum1 : s.m0 * (float)(sum0 + sum1);
      acc[r] += scale * f;
    }
  }

  // Unsigned times signed bytes.
  static DEV int dot4(u32 codes, u32 digits, int sum) {
    int r;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(codes), "r"(digits), "r"(sum));
    return r;
  }

  // The words of a unit of one plane, of which 8 bits come in two pieces.
  template <int BITS>
  static DEV void load_plane(const u8* plane, u32 r, u32 n, u32 lane, u32* w) {
    if constexpr (BITS == 8) {
      uint4 a = *(const uint4*)(plane + ((2 * r) * n + lane) * 16);
      uint4 b = *(const uint4*)(plane + ((2 * r + 1) * n + lane) * 16);
      w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
      w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
    } else if constexpr (BITS == 4) {
      uint4 a = *(const uint4*)(plane + (r * n + lane) * 16);
      w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
    } else if constexpr (BITS == 2) {
      uint2 a = *(const uint2*)(plane + (r * n + lane) * 8);
      w[0] = a.x, w[1] = a.y;
    } else {
      w[0] = *(const u32*)(plane + (r * n + lane) * 4);
    }
  }
};

// Floats of KIND.
template <u32 KIND>
struct Floats {
  static constexpr u32 UNIT = KIND == F32 ? 4 : 8;

  static DEV void put_quad(u8* xs, u32 units, u32 q, u32 all, float4 v, u32) {
    if (q >= all) return;
    u32 per = UNIT / 4;
    *(float4*)(xs + ((q % per) * units + q / per) * 16) = v;
  }

  static DEV void span(const Matrix& m, const u8* page, u32 span, u32 n, const u8* xs, u32 lane,
                       float* acc) {
    if (lane >= n) return;
    u32 units = m.units, unit = span * SPAN + lane;
    const float4* x = (const float4*)xs + unit;
    float4 x0 = x[0], x1 = KIND == F32 ? x0 : x[units];
#pragma unroll
    for (u32 r = 0; r < PANEL; r++) {
      uint4 w = *(const uint4*)(page + (r * n + lane) * 16);
      if (KIND == F32) {
        acc[r] += __uint_as_float(w.x) * x0.x + __uint_as_float(w.y) * x0.y +
                  __uint_as_float(w.z) * x0.z + __uint_as_float(w.w) * x0.w;
      } else {
        auto low = [](u32 v) { return KIND == BF16 ? bf16_low(v) : half_to_f32(v & 0xffff); };
        auto high = [](u32 v) { return KIND == BF16 ? bf16_high(v) : half_to_f32(v >> 16); };
        float a = low(w.x) * x0.x + high(w.x) * x0.y + low(w.y) * x0.z + high(w.y) * x0.w;
        acc[r] += a + low(w.z) * x1.x + high(w.z) * x1.y + low(w.w) * x1.z + high(w.w) * x1.w;
      }
    }
  }
};

template <class F>
DEV void gemv(const Gemv& p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ float shared32[32];
  __shared__ float regs[MAX_REGISTERS * WARPS * PANEL];
  __shared__ float slices[2 * WARPS * PANEL];
#if HOPPER
  __shared__ u64 barriers[WARPS * 8];
#endif
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 stages = HOPPER ? p.stages : PLAIN_STAGES;
  u8* ring = shared + warp * stages * p.stage_bytes;
  u8* xs = shared + p.rings * stages * p.stage_bytes;
  u64* full = nullptr;
#if HOPPER
  full = barriers + warp * 8;
  if (lane < stages) barrier_init(full + lane);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
#endif
  Cursor next;
  next.slice = warp & ((1u << p.share) - 1);
  next.panel_of_all = (warp >> p.share) * gridDim.x + blockIdx.x;
  seek(p, next);
  Cursor now = next, mine_alone = next;
  for (u32 s = 0; s < stages; s++) {
    if (!at_end(p, next)) {
      fetch(p, next, ring + s * p.stage_bytes, full + s, lane);
      next_page(p, next);
    }
#if !HOPPER
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  pdl_launch_next();
  prepare_row<F>(p, xs, shared32);

  u32 stage = 0, parity = 0;
  float v0 = 0, early = 0;
  float acc[PANEL] = {0, 0, 0, 0};
  while (!at_end(p, now)) {
    const Domain& d = p.domain[now.domain];
    const Matrix& m = p.part[d.part[now.part]];
    u32 row = lane / 8, col = now.panel * PANEL + row;
    bool mine = lane % 8 == 0 && col < m.rows;
    if (now.slice == 0 && now.span == 0 && now.part == 0 && mine && d.epilogue.form == RESIDUAL)
      early = operand(d.epilogue.residual, 0, col, nullptr, 0);
#if HOPPER
    barrier_wait(full + stage, parity);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(PLAIN_STAGES - 1) : "memory");
    __syncwarp();
#endif
    const u8* page = ring + stage * p.stage_bytes;
    u32 stop = slice_begin(p, m, now.slice + 1), end = min(now.span + d.page[now.part], stop);
    for (u32 s = now.span; s < end; s++) {
      F::span(m, page, s, span_units(m, s), xs, lane, acc);
      page += m.span_bytes;
    }
    // All lanes have read the page before it is overwritten.
    __syncwarp();
    if (!at_end(p, next)) {
      fetch(p, next, ring + stage * p.stage_bytes, full + stage, lane);
      next_page(p, next);
    }
#if !HOPPER
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    if (++stage == stages) stage = 0, parity ^= 1;
    if (end == stop) {
      // Four sums over 32 lanes at once: lane 8 i ends up with output i.
      bool b16 = lane & 16, b8 = lane & 8;
      float a0 = (b16 ? acc[2] : acc[0]) + __shfl_xor_sync(FULL, b16 ? acc[0] : acc[2], 16);
      float a1 = (b16 ? acc[3] : acc[1]) + __shfl_xor_sync(FULL, b16 ? acc[1] : acc[3], 16);
      float v = (b8 ? a1 : a0) + __shfl_xor_sync(FULL, b8 ? a0 : a1, 8);
      v += __shfl_xor_sync(FULL, v, 4);
      v += __shfl_xor_sync(FULL, v, 2);
      v += __shfl_xor_sync(FULL, v, 1);
#pragma unroll
      for (u32 r = 0; r < PANEL; r++) acc[r] = 0;
      if (now.part == 0) v0 = v;
      if (p.share) {
        if (lane % 8 == 0) slices[(now.part * WARPS + warp) * PANEL + row] = v;
      } else if (now.part + 1 == d.parts && mine)
        finish(d.epilogue, 0, col, v0, v, early, regs + warp * PANEL + row, WARPS * PANEL);
    }
    next_page(p, now);
  }
  // A warp has one panel at most where panels are shared.
  if (!p.share) return;
  __syncthreads();
  if (mine_alone.slice != 0 || at_end(p, mine_alone)) return;
  const Domain& d = p.domain[mine_alone.domain];
  u32 row = lane / 8, col = mine_alone.panel * PANEL + row;
  if (lane % 8 != 0 || col >= p.part[d.part[0]].rows) return;
  v0 = 0;
  float v1 = 0;
  for (u32 i = warp; i < warp + (1u << p.share); i++) {
    v0 += slices[i * PANEL + row];
    if (d.parts == 2) v1 += slices[(WARPS + i) * PANEL + row];
  }
  finish(d.epilogue, 0, col, v0, v1, early, regs + warp * PANEL + row, WARPS * PANEL);
}
