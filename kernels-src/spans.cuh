// A row of several in shared memory times units of weights: for experts, whose weights no ring can
// bring early, since the row decides which they are.
//
// The row: for planes 5 pieces of 16 bytes a unit, `[piece][unit]`: high digits, low digits, {scale,
// sum of the first 16, of the second 16}. For floats `[piece][unit]` of f32.
#pragma once
#include "layout.cuh"

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

  // Adds the products of a unit of a panel to the four outputs' sums.
  static DEV void unit(const Matrix& m, const u8* panel, u32 unit, const u8* xs, float* acc) {
    // The commonest scales, a constant zero and no second level, have a path without questions.
    if (m.levels == LEVEL_ONE && m.min == ZERO && m.codes == PLAIN)
      dots<true>(m, panel, unit, xs, acc);
    else
      dots<false>(m, panel, unit, xs, acc);
  }

  template <bool SIMPLE>
  static DEV void dots(const Matrix& m, const u8* panel, u32 unit, const u8* xs, float* acc) {
    u32 units = m.units, span = unit / PLANES_SPAN, n = span_units<PLANES_SPAN>(m, span), in = unit % PLANES_SPAN;
    const u8* page = panel + (u64)span * m.span_bytes;
    const uint4* x = (const uint4*)xs + unit;
    uint4 h0 = x[0], h1 = x[units], l0 = x[2 * units], l1 = x[3 * units], meta = x[4 * units];
    u32 high[8] = {h0.x, h0.y, h0.z, h0.w, h1.x, h1.y, h1.z, h1.w};
    u32 low[8] = {l0.x, l0.y, l0.z, l0.w, l1.x, l1.y, l1.z, l1.w};
    float scale = __uint_as_float(meta.x);
    int sum0 = (int)meta.y, sum1 = (int)meta.z;
    int zero0 = m.zero * sum0, zero1 = m.zero * sum1;
    const u8* hi_at = page + PANEL * n * 4 * LO;
    const u8* d = hi_at + PANEL * n * 4 * HI + 2 * place_of(0, in);
#pragma unroll
    for (u32 r = 0; r < PANEL; r++) {
      u32 lo[LO], hi[HI ? HI : 1];
      load_plane<LO>(page, r, n, in, lo);
      if constexpr (HI != 0) load_plane<HI>(hi_at, r, n, in, hi);
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
        float s = half_to_f32(*(const u16*)(d + 2 * r)) * scale;
        acc[r] += s * (float)(255 * dh0 + dl0 - (zero0 + zero1));
        continue;
      }
      int t0 = 255 * dh0 + dl0, t1 = 255 * dh1 + dl1;
      if (LO == 1 && HI == 0 && m.codes == DOUBLE) t0 *= 2, t1 *= 2;
      t0 -= zero0, t1 -= zero1;
      Scales s = scales_of(m, page, n, r, in);
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
  static DEV void load_plane(const u8* plane, u32 r, u32 n, u32 unit, u32* w) {
    if constexpr (BITS == 8) {
      uint4 a = *(const uint4*)(plane + place_of(r, unit) * 16);
      uint4 b = *(const uint4*)(plane + (PANEL * n + place_of(r, unit)) * 16);
      w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
      w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
    } else if constexpr (BITS == 4) {
      uint4 a = *(const uint4*)(plane + place_of(r, unit) * 16);
      w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
    } else if constexpr (BITS == 2) {
      uint2 a = *(const uint2*)(plane + place_of(r, unit) * 8);
      w[0] = a.x, w[1] = a.y;
    } else {
      w[0] = *(const u32*)(plane + place_of(r, unit) * 4);
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

  static DEV void unit(const Matrix& m, const u8* panel, u32 unit, const u8* xs, float* acc) {
    u32 units = m.units, span = unit / FLOATS_SPAN, n = span_units<FLOATS_SPAN>(m, span);
    const u8* page = panel + (u64)span * m.span_bytes + unit % FLOATS_SPAN * 16;
    const float4* x = (const float4*)xs + unit;
    float4 x0 = x[0], x1 = KIND == F32 ? x0 : x[units];
#pragma unroll
    for (u32 r = 0; r < PANEL; r++) {
      uint4 w = *(const uint4*)(page + r * n * 16);
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
