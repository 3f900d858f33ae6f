// Many rows times weights before sm_90: `mma` of a warp.
//
// Rows come as two bf16 that add up to the f32 (16 bits of it), weights are taken apart the same way
// while they go to shared memory: bf16 weights are exact in one, all others are decoded to f32 and
// split in two. Products of high and low parts add up in f32 to what f32 would give, to about 2^-17.
// A tile is 64 rows by 128 outputs by 32 inputs; three stages are in flight. A row's sums run in one
// order whatever stands beside it.
#pragma once
#include "gemm.cuh"

#if !HOPPER
constexpr u32 TILE_M = 64, TILE_N = 128, TILE_K = 32, GEMM_STAGES = 3;
// Elements from a row of a tile to the next: 80 bytes, so that eight rows fall into distinct banks.
constexpr u32 LINE = 40;

DEV void async16(void* to, const void* from, bool there) {
  u32 bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
DEV void load4(u32* r, const u16* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(at)) : "memory");
}
DEV void multiply(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEV const u8* unit_at(const Matrix& m, u32 row, u32 u, u32& n, const u8*& span) {
  u32 s = u / FLOATS_SPAN;
  n = span_units<FLOATS_SPAN>(m, s);
  span = m.data + (u64)(row / PANEL) * m.panel_bytes + (u64)s * m.span_bytes;
  return span + (row % PANEL * n + u % FLOATS_SPAN) * 16;
}

// Eight consecutive weights of a row: fetched early, decoded late.
template <int LO, int HI>
struct PlanesTask {
  static constexpr bool ASYNC = false;
  u32 lo[2], hi[2];
  float s, m;
  template <int BITS>
  static DEV void words(const u8* plane, u32 r, u32 n, u32 unit, u32 quarter, u32* w) {
    if constexpr (BITS == 8) {
      uint2 a = *(const uint2*)(plane + (quarter / 2 * PANEL * n + place_of(r, unit)) * 16 + quarter % 2 * 8);
      w[0] = a.x, w[1] = a.y;
    } else {
      const u32* at = (const u32*)(plane + place_of(r, unit) * 4 * BITS);
      u32 first = 2 * quarter;
      w[0] = at[first % BITS] >> first / BITS * BITS & CODES<BITS>;
      w[1] = at[(first + 1) % BITS] >> (first + 1) / BITS * BITS & CODES<BITS>;
    }
  }
  DEV void fetch(const Matrix& w, u32 row, u32 k, u32 quarter, bool there) {
    lo[0] = lo[1] = hi[0] = hi[1] = 0;
    s = m = 0;
    u32 unit = k / 32;
    if (!there || unit >= w.units) return;
    u32 span = unit / PLANES_SPAN, n = span_units<PLANES_SPAN>(w, span), r = row % PANEL, u = unit % PLANES_SPAN;
    const u8* p = w.data + (u64)(row / PANEL) * w.panel_bytes + (u64)span * w.span_bytes;
    words<LO>(p, r, n, u, quarter, lo);
    if constexpr (HI != 0) words<HI>(p + span_at(w, n).hi, r, n, u, quarter, hi);
    Scales all = scales_of(w, p, n, r, u);
    s = quarter < 2 ? all.s0 : all.s1;
    m = quarter < 2 ? all.m0 : all.m1;
  }
  DEV void decode(const Matrix& w, float* v) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      u32 c = lo[i] | (HI ? hi[i] << LO : 0);
      if (LO == 4 && HI == 0 && w.codes == TABLE) c = look_up(w.table, c);
      if (LO == 1 && HI == 0 && w.codes == DOUBLE) c *= 2;
#pragma unroll
      for (int e = 0; e < 4; e++) v[4 * i + e] = s * (float)((int)(c >> (8 * e) & 0xff) - w.zero) + m;
    }
  }
};
template <u32 KIND>
struct FloatsTask {
  static constexpr bool ASYNC = KIND == BF16;
  uint4 a, b;
  DEV void fetch(const Matrix& w, u32 row, u32 k, u32 quarter, bool there) {
    a = b = make_uint4(0, 0, 0, 0);
    u32 n, u = (k + quarter * 8) / (KIND == F32 ? 4 : 8);
    const u8* span;
    if (there && u < w.units) a = *(const uint4*)unit_at(w, row, u, n, span);
    if (KIND == F32 && there && u + 1 < w.units) b = *(const uint4*)unit_at(w, row, u + 1, n, span);
  }
  DEV void decode(const Matrix&, float* v) const {
    const u32 w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
      v[i] = KIND == F32 ? __uint_as_float(w[i]) : half_to_f32(i % 2 ? w[i / 2] >> 16 : w[i / 2] & 0xffff);
  }
};

template <class T>
DEV void gemm(const Gemm& p) {
  extern __shared__ __align__(128) u8 shared[];
  constexpr u32 A = TILE_M * LINE, B = TILE_N * LINE, STAGE = 2 * A + (T::ASYNC ? 1 : 2) * B;
  u16* tiles = (u16*)shared;
  u32 t = threadIdx.x, warp = t / 32, lane = t % 32, wm = warp / 4, wn = warp % 4;
  u32 which = 0;
  while (which + 1 < p.domains && blockIdx.y >= p.first[which + 1]) which++;
  const Domain& d = p.domain[which];
  u32 parts = d.parts, m0 = blockIdx.x * TILE_M, n0 = (blockIdx.y - p.first[which]) * (TILE_N / parts);
  u32 outputs = p.part[d.part[0]].rows;

  // This thread's two tasks of weights, and its four pieces of rows.
  u32 quarter = t % 4, part[2], output[2];
#pragma unroll
  for (u32 i = 0; i < 2; i++) {
    u32 n = t / 4 + i * 64;
    part[i] = parts == 1 ? d.part[0] : d.part[n % 32 / 16];
    output[i] = parts == 1 ? n0 + n : n0 + n / 32 * 16 + n % 16;
  }
  u32 steps = p.stride / TILE_K;
  pdl_launch_next();
  pdl_wait();
  auto issue = [&](u32 k_tile) {
    u16* a = tiles + k_tile % GEMM_STAGES * STAGE;
    u32 row = t / 4, k = k_tile * TILE_K + quarter * 8;
    bool there = m0 + row < p.rows && k_tile < steps;
    u64 at = there ? (u64)(m0 + row) * p.stride + k : 0;
    async16(a + row * LINE + quarter * 8, p.high + at, there);
    async16(a + A + row * LINE + quarter * 8, p.low + at, there);
    if constexpr (T::ASYNC) {
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        const Matrix& w = p.part[part[i]];
        u32 n = 0, u = k / 8;
        const u8* span;
        bool in = output[i] < outputs && u < w.units;
        const u8* from = in ? unit_at(w, output[i], u, n, span) : w.data;
        async16(a + 2 * A + (t / 4 + i * 64) * LINE + quarter * 8, from, in);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  T task[2];
  auto fetch = [&](u32 k_tile) {
    if constexpr (!T::ASYNC) {
#pragma unroll
      for (u32 i = 0; i < 2; i++)
        task[i].fetch(p.part[part[i]], output[i], k_tile * TILE_K, quarter, output[i] < outputs);
    }
  };
  auto store = [&](u32 k_tile) {
    if constexpr (!T::ASYNC) {
      u16* b = tiles + k_tile % GEMM_STAGES * STAGE + 2 * A;
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        float v[8];
        task[i].decode(p.part[part[i]], v);
        u32 high[4], low[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          high[e] = bf16x2(v[2 * e], v[2 * e + 1]);
          low[e] = bf16x2(v[2 * e] - bf16_low(high[e]), v[2 * e + 1] - bf16_high(high[e]));
        }
        u16* at = b + (t / 4 + i * 64) * LINE + quarter * 8;
        *(uint4*)at = make_uint4(high[0], high[1], high[2], high[3]);
        *(uint4*)(at + B) = make_uint4(low[0], low[1], low[2], low[3]);
      }
    }
  };

  float acc[2][4][4] = {};
  issue(0);
  issue(1);
  fetch(0);
  store(0);
  for (u32 k_tile = 0; k_tile < steps; k_tile++) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    // The stage two ahead was read last in the round before: it is free.
    issue(k_tile + 2);
    bool more = k_tile + 1 < steps;
    if (more) fetch(k_tile + 1);
    const u16* a = tiles + k_tile % GEMM_STAGES * STAGE;
#pragma unroll
    for (u32 k = 0; k < TILE_K; k += 16) {
      u32 ah[2][4], al[2][4], bh[4][2], bl[4][2];
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        const u16* at = a + (wm * 32 + i * 16 + lane % 16) * LINE + k + lane / 16 * 8;
        load4(ah[i], at);
        load4(al[i], at + A);
      }
#pragma unroll
      for (u32 j = 0; j < 2; j++) {
        const u16* at = a + 2 * A + (wn * 32 + j * 16 + lane / 16 * 8 + lane % 8) * LINE + k + lane / 8 % 2 * 8;
        load4(&bh[2 * j][0], at);
        if constexpr (!T::ASYNC) load4(&bl[2 * j][0], at + B);
      }
      // Products of one sum stand apart, so that none waits for the one before.
      auto all = [&](const u32 (*x)[4], const u32 (*w)[2]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
          for (u32 j = 0; j < 4; j++) multiply(acc[i][j], x[i], w[j]);
      };
      all(al, bh);
      if constexpr (!T::ASYNC) all(ah, bl);
      all(ah, bh);
    }
    if (more) store(k_tile + 1);
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();

  // Through shared memory, so that neighbours in a row are written by neighbouring threads; byte
  // code keeps its registers behind.
  constexpr u32 WIDTH = TILE_N + 4;
  float* sums = (float*)shared;
#pragma unroll
  for (u32 i = 0; i < 2; i++)
#pragma unroll
    for (u32 j = 0; j < 4; j++)
#pragma unroll
      for (u32 e = 0; e < 4; e++)
        sums[(wm * 32 + i * 16 + lane / 4 + e / 2 * 8) * WIDTH + wn * 32 + j * 8 + lane % 4 * 2 + e % 2] = acc[i][j][e];
  __syncthreads();
  float* regs = sums + TILE_M * WIDTH + t;
  u32 columns = TILE_N / parts;
#pragma unroll 1
  for (u32 i = t; i < TILE_M * columns; i += 256) {
    u32 row = m0 + i / columns, c = i % columns, col = n0 + c;
    if (row >= p.rows || col >= outputs) continue;
    const float* v = sums + i / columns * WIDTH + (parts == 1 ? c : c / 16 * 32 + c % 16);
    float early = d.epilogue.form == RESIDUAL ? operand(d.epilogue.residual, row, col, nullptr, 0) : 0.0f;
    finish(d.epilogue, row, col, v[0], v[parts == 1 ? 0 : 16], early, regs, 256);
  }
}
#endif
