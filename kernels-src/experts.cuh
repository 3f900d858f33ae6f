// What a pick of a row is multiplied with. Experts' weights no ring can bring early, since the row decides which they are: a
// warp has all columns of two panels, and asks memory for the next groups of units while it multiplies one. The row is in
// shared memory, as lanes take it.
#pragma once
#include "units.cuh"

// Panels of a warp at a time.
constexpr u32 PANELS = 2;

// Loads that stay where they are written, of weights that pass once.
template <u32 BYTES>
DEV void ask(const u8* at, u32* to) {
  if constexpr (BYTES == 16) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(at));
  } else if constexpr (BYTES == 8) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(at));
  } else if constexpr (BYTES == 4) {
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(to[0]) : "l"(at));
  } else if constexpr (BYTES == 2) {
    asm volatile("{\n.reg .u16 h;\nld.global.nc.L1::no_allocate.u16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(to[0]) : "l"(at));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.u8 %0, [%1];" : "=r"(to[0]) : "l"(at));
  }
}
// Of one, two or four bytes.
DEV void ask_some(const u8* at, u32 bytes, u32* to) {
  if (bytes == 1) ask<1>(at, to);
  else if (bytes == 2) ask<2>(at, to);
  else ask<4>(at, to);
}
// A row, perhaps with weights of its norm.
struct NormedRow {
  const float *x, *norm;
  u32 cols;
  // Four columns, from anywhere, with zeros behind the end, times those weights; what they come to squared is added to `sum`.
  DEV float4 four(u32 c, float& sum) const {
    auto of = [&](const float* x) {
      auto one = [&](u32 c) { return c < cols ? cg_f32(x + c) : 0.0f; };
      return make_float4(one(c), one(c + 1), one(c + 2), one(c + 3));
    };
    float4 v = of(x);
    if (!norm) return v;
    sum += square(v);
    return times(v, of(norm));
  }
};

// Planes of LO and HI bits: a lane has one row of a panel, and of eight units each time one.
template <int LO, int HI>
struct PlanesOfExpert {
  typedef Planes<LO, HI> Of;
  typedef typename Of::Integers Integers;
  typedef typename Of::Lane Lane;
  // Units of a group, which is a span, and groups on their way.
  static constexpr u32 GROUP = PLANES_SPAN, AHEAD = LO == 8 ? 2 : 4;

  // A group of the row: `[unit][4]` of integers, two to a word, and behind those of all a scale and two sums a unit. A lane's
  // share of its squares, if there is a norm.
  static DEV float make(const NormedRow& from, u8* row, u32 groups, u32 g, u32 lane) {
    float4 v[2];
    float squares = 0;
#pragma unroll
    for (u32 q = 0; q < 2; q++) v[q] = from.four(Of::column(g * GROUP, q, lane), squares);
    Integers n;
    n.make(v, (uint4*)row + g * 32, lane);
    uint4 about = make_uint4(__float_as_uint(n.scale), (u32)n.sum0, (u32)n.sum1, 0);
    if (lane % 4 == 0) ((uint4*)row)[groups * 32 + g * GROUP + lane / 4] = about;
    return squares;
  }
  static DEV void take(Integers& n, const u8* row, u32 groups, u32 g, u32 lane) {
    n.take((const uint4*)row + g * 32, lane);
    uint4 about = ((const uint4*)row)[groups * 32 + g * GROUP + lane / 4];
    n.scale = __uint_as_float(about.x), n.sum0 = (int)about.y, n.sum1 = (int)about.z;
  }

  // A lane's unit, on its way from memory.
  struct Weights {
    u32 of_low[LO], of_high[HI ? HI : 1], s, d;
    template <Path PATH>
    DEV void bring(const Matrix& m, const u8* panel, const Lane& at) {
      ask<LO == 8 ? 16 : 4 * LO>(panel + at.lo[0], of_low);
      if constexpr (LO == 8) ask<16>(panel + at.lo[0] + at.d[0], of_low + 4);
      if constexpr (HI != 0) ask<4 * HI>(panel + at.hi[0], of_high);
      const u8 *scale = panel + at.scales[0], *both = panel + at.d[0];
      if constexpr (PATH == ONE_AND_MIN || PATH == HALVES_AND_MIN) ask<4>(scale, &s);
      else if constexpr (PATH == ANY || PATH == ENTRIES) ask_some(scale, scale_bytes(m), &s);
      else ask<2>(scale, &s);
      if constexpr (PATH == HALVES) ask<2>(both, &d);
      if constexpr (PATH == SCALE_AND_MIN || PATH == HALVES_AND_MIN) ask<4>(both, &d);
      if constexpr (PATH == ANY)
        if (at.levels == LEVEL_TWO) ask_some(both, d_bytes(m), &d);
    }
    DEV void low(u32* w) const {
#pragma unroll
      for (int i = 0; i < LO; i++) w[i] = of_low[i];
    }
    DEV void high(u32* w) const {
#pragma unroll
      for (int i = 0; i < HI; i++) w[i] = of_high[i];
    }
    template <class T>
    DEV T scale(u32 i = 0) const { return (T)(s >> 8 * sizeof(T) * i); }
    template <class T>
    DEV T both(u32 i = 0) const { return (T)(d >> 8 * sizeof(T) * i); }
  };

  // What the outputs of `n` panels, so many bytes apart, come to; `output_of` says which one a lane has.
  static DEV float multiply(const Matrix& m, const u8* panel, u64 apart, u32 n, const u8* row, u32 groups, u32 lane) {
    Lane whole, last;
    whole.find(m, 0, 0, lane), last.find(m, (groups - 1) * GROUP, 0, lane);
#define OR_BY(PATH) Of::has(PATH) && whole.path == PATH ? multiply_by<PATH>(m, panel, apart, n, row, groups, whole, last, lane) :
    return OR_BY(ONE_SCALE) OR_BY(ONE_AND_MIN) OR_BY(SCALE_AND_MIN) OR_BY(HALVES) OR_BY(HALVES_AND_MIN) OR_BY(ENTRIES)
        multiply_by<ANY>(m, panel, apart, n, row, groups, whole, last, lane);
#undef OR_BY
  }
  template <Path PATH>
  static DEV float multiply_by(const Matrix& m, const u8* panel, u64 apart, u32 n, const u8* row, u32 groups, const Lane& whole,
                               const Lane& last, u32 lane) {
    float f[PANELS] = {};
    Weights w[AHEAD][PANELS];
    auto bring = [&](u32 g, Weights* to) {
      if (g >= groups) return;
      bool ends = g + 1 == groups;
      Lane at = whole;
      if (ends) at.lo[0] = last.lo[0], at.hi[0] = last.hi[0], at.scales[0] = last.scales[0], at.d[0] = last.d[0];
#pragma unroll
      for (u32 i = 0; i < PANELS; i++)
        to[i].template bring<PATH>(m, panel + min(i, n - 1) * apart + (u64)g * m.span_bytes, at);
    };
#pragma unroll
    for (u32 a = 0; a < AHEAD; a++) bring(a, w[a]);
#pragma unroll 1
    for (u32 first = 0; first < groups; first += AHEAD) {
#pragma unroll
      for (u32 a = 0; a < AHEAD; a++) {
        if (first + a >= groups) break;
        Integers x;
        take(x, row, groups, first + a, lane);
#pragma unroll
        for (u32 i = 0; i < PANELS; i++) f[i] += Of::template dot<PATH>(m, w[a][i], whole, x);
        bring(first + a + AHEAD, w[a]);
      }
    }
    return sums_over<PANELS, 8, PANEL>(f, lane);
  }
  static DEV u32 output_of(u32 lane) {
    u32 unit = Of::unit_of(lane), each = 8 / PANELS;
    return unit % each ? ~0u : unit / each * PANEL + Of::row_of(lane);
  }
};

// Floats of KIND: a lane has all four rows of a panel, and of 32 units each time one.
template <u32 KIND>
struct FloatsOfExpert {
  typedef Floats<KIND> Of;
  static constexpr u32 GROUP = FLOATS_SPAN, AHEAD = 2, QUADS = Of::QUADS;

  // A group of the row: `[quad][unit]`.
  static DEV float make(const NormedRow& from, u8* row, u32 groups, u32 g, u32 lane) {
    float squares = 0;
#pragma unroll
    for (u32 q = 0; q < QUADS; q++)
      ((float4*)row)[(q * groups + g) * GROUP + lane] = from.four(Of::column(g * GROUP, q, lane), squares);
    return squares;
  }
  static DEV float multiply(const Matrix& m, const u8* panel, u64 apart, u32 n, const u8* row, u32 groups, u32 lane) {
    constexpr u32 ALL = PANELS * PANEL;
    float f[ALL] = {};
    u32 w[AHEAD][ALL][4];
    auto bring = [&](u32 g, u32 (*to)[4]) {
      if (g >= groups) return;
      typename Of::Lane at;
      at.find(m, g * GROUP, 0, lane);
#pragma unroll
      for (u32 i = 0; i < ALL; i++)
        ask<16>(panel + min(i / PANEL, n - 1) * apart + (u64)g * m.span_bytes + at.at + i % PANEL * at.line, to[i]);
    };
#pragma unroll
    for (u32 a = 0; a < AHEAD; a++) bring(a, w[a]);
#pragma unroll 1
    for (u32 first = 0; first < groups; first += AHEAD) {
#pragma unroll
      for (u32 a = 0; a < AHEAD; a++) {
        if (first + a >= groups) break;
        typename Of::Unit x;
#pragma unroll
        for (u32 q = 0; q < QUADS; q++) x.v[q] = ((const float4*)row)[(q * groups + first + a) * GROUP + lane];
#pragma unroll
        for (u32 i = 0; i < ALL; i++) f[i] += Of::dot(make_uint4(w[a][i][0], w[a][i][1], w[a][i][2], w[a][i][3]), x);
        bring(first + a + AHEAD, w[a]);
      }
    }
    return sums_over<ALL, 32, 1>(f, lane);
  }
  static DEV u32 output_of(u32 lane) {
    u32 each = 32 / (PANELS * PANEL);
    return lane % each ? ~0u : lane / each;
  }
};
