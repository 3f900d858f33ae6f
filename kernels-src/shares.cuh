// The left side of a product on sm_90a: weights from memory to the lanes that multiply them.
#pragma once
#include "gemm.cuh"
#include "wgmma.cuh"

#if HOPPER
// Steps of 32 inputs, two instructions each, of a block of 128 inputs.
constexpr int STEPS = 4;

// Loads of weights stay where they are written: from memory, or from an address in shared memory.
#define WEIGHT_LOADS(AT, FROM, HOW)                                                                                  \
  DEV void weights(AT at, u32& a) { asm volatile("ld." FROM ".u32 %0, [%1];" : "=r"(a) : HOW(at)); }                 \
  DEV void weights(AT at, u32& a, u32& b) {                                                                          \
    asm volatile("ld." FROM ".v2.u32 {%0,%1}, [%2];" : "=r"(a), "=r"(b) : HOW(at));                                  \
  }                                                                                                                  \
  DEV void weights(AT at, u32& a, u32& b, u32& c, u32& d) {                                                          \
    asm volatile("ld." FROM ".v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : HOW(at));          \
  }                                                                                                                  \
  /* Of one, two or four bytes, or none. */                                                                          \
  DEV void weights_of(AT at, u32 bytes, u32& a) {                                                                    \
    asm volatile("{\n.reg .pred q, r, s;\nsetp.eq.u32 q, %2, 1;\nsetp.eq.u32 r, %2, 2;\nsetp.eq.u32 s, %2, 4;\n"     \
                 "mov.u32 %0, 0;\n@q ld." FROM ".u8 %0, [%1];\n@r ld." FROM ".u16 %0, [%1];\n"                      \
                 "@s ld." FROM ".u32 %0, [%1];\n}" : "=&r"(a) : HOW(at), "r"(bytes));                                \
  }
WEIGHT_LOADS(const u8*, "global.nc", "l")
WEIGHT_LOADS(u32, "shared", "r")

// The weights of the two outputs of a lane, eight apart in a tile or the same of two parts: their
// panels, and which row of a panel both are. Outputs that are not there read others; nobody looks at
// what comes of them.
struct Lines {
  const u8* panel[2];
  u32 row;
};

// A lane's share of two outputs in floats: steps of 8 weights, or what comes next of them. What is kept of a step
// is in its slot, which counts on through as many blocks as slots hold.
template <u32 KIND, int SLOTS_ = STEPS>
struct FloatShare {
  static constexpr int SLOTS = SLOTS_;
  static constexpr bool EXACT = KIND == BF16;
  static constexpr u32 WORDS = KIND == F32 ? 8 : 4;
  static constexpr u32 PER = KIND == F32 ? 4 : 8, BLOCK = 128 / PER, EACH = 8 / PER, BLOCKS = SPAN / BLOCK;
  u32 w[SLOTS][2][WORDS];
  // Where the lane's first units of a block are, and how many there are up to the row's last.
  const u8* at[2];
  int room;
  DEV void look(const Matrix& m, u32 block, u32 q, u32 wide) {
    u32 n = span_units(m, block / BLOCKS);
    room = (int)n - 1 - (int)(block % BLOCKS * BLOCK + q * (wide ? STEPS * EACH : EACH));
  }
  DEV void begin(const Matrix& m, const Matrix&, const Lines& line, u32 block, u32 q, u32 wide) {
    look(m, block, q, wide);
    u32 span = block / BLOCKS, n = span_units(m, span);
    u32 from = span * m.span_bytes + (line.row * n + n - 1) * 16;
#pragma unroll
    for (u32 side = 0; side < 2; side++) at[side] = line.panel[side] + from - room * 16;
  }
  // Step `step` of `block`; the first step of a block goes on from the block before.
  DEV void fetch(const Matrix& m, const Matrix&, const Lines& line, u32 block, u32 end, u32 q, u32 wide, int step, int slot, bool first) {
    if (step == 0 && !first && block < end) {
      look(m, block, q, wide);
      u32 on = block % BLOCKS != 0 ? BLOCK * 16
                                   : m.span_bytes - (SPAN - BLOCK) * 16 - line.row * (SPAN - span_units(m, block / BLOCKS)) * 16;
      at[0] += on, at[1] += on;
    }
    // Past the last input rows are zero: any weights will do.
    int off = min(step * (int)(wide ? EACH : 4 * EACH), room);
#pragma unroll
    for (u32 side = 0; side < 2; side++) {
      u32* to = w[slot % SLOTS][side];
      const u8* from = at[side] + off * 16;
      weights(from, to[0], to[1], to[2], to[3]);
      if constexpr (EACH == 2) weights(from + (off < room ? 16 : 0), to[4], to[5], to[6], to[7]);
    }
  }
  DEV bool decode_short(const Matrix&, u32, int, int, u32*, u32*) const { return false; }
  // Eight weights of a step.
  DEV void decode(const Matrix&, u32 side, int, int slot, float* v) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      u32 word = w[slot % SLOTS][side][KIND == F32 ? i % WORDS : i / 2 % WORDS];
      v[i] = KIND == F32 ? __uint_as_float(word) : half_to_f32(i % 2 ? word >> 16 : word & 0xffff);
    }
  }
};

// Two bf16 at once.
DEV u32 minus2(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV u32 times2(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV u32 fused2(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
DEV u32 negated2(u32 a) {
  u32 r;
  asm("neg.bf16x2 %0, %1;" : "=r"(r) : "r"(a));
  return r;
}

// In planes: one unit of an output.
template <int LO, int HI>
struct Unit {
  u32 lo[LO], hi[HI ? HI : 1], s, d;
  template <int BITS, class At>
  static DEV void plane(At at, u32* w) {
    if constexpr (BITS == 4) weights(at, w[0], w[1], w[2], w[3]);
    if constexpr (BITS == 2) weights(at, w[0], w[1]);
    if constexpr (BITS == 1) weights(at, w[0]);
  }
  // Unit `u` of `n` of a row of a span.
  template <class At>
  DEV void fetch(const Matrix& m, At p, u32 row, u32 n, u32 u) {
    if constexpr (LO == 8) {
      plane<4>(p + (2 * row * n + u) * 16, lo);
      plane<4>(p + ((2 * row + 1) * n + u) * 16, lo + 4);
    } else {
      plane<LO>(p + (row * n + u) * 4 * LO, lo);
    }
    SpanAt at = span_at(m, n);
    if constexpr (HI != 0) plane<HI>(p + at.hi + (row * n + u) * 4 * HI, hi);
    u32 bytes = scale_bytes(m);
    weights_of(p + at.scales + (row * n + u) * bytes, bytes, s);
    u32 wide = d_bytes(m), two = m.levels == LEVEL_TWO ? wide : 0;
    weights_of(p + at.d + (row * ((n + 7) / 8) + u / 8) * wide, two, d);
  }
  // Unit `u` of all rows of a whole span that has a scale a unit.
  DEV void fetch(u32 p, u32 u) {
    constexpr u32 BYTES = PANEL * SPAN * 4;
    if constexpr (LO == 8) {
      // Two pieces: those of a row stand together.
      u32 at = p + (u / SPAN * SPAN + u) * 16;
      plane<4>(at, lo), plane<4>(at + SPAN * 16, lo + 4);
    } else {
      plane<LO>(p + u * 4 * LO, lo);
    }
    if constexpr (HI != 0) plane<HI>(p + BYTES * LO + u * 4 * HI, hi);
    asm volatile("{\n.reg .u16 h;\nld.shared.u16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(s) : "r"(p + BYTES * (LO + HI) + u * 2));
  }
  // As `scales_of` in layout.cuh: of the first 16 inputs, or of the others.
  DEV void scales(const Matrix& m, bool second, float& scale, float& add) const {
    add = 0.0f;
    if (m.levels == LEVEL_ONE) {
      scale = half_to_f32(s & 0xffff);
      if (m.min == ONE) add = half_to_f32(s >> 16);
    } else if (m.levels == EXPONENT) {
      scale = __uint_as_float(s < 2 ? 0x00200000u << s : (s - 1) << 23);
    } else {
      u32 h = m.halves == 2 && second;
      scale = half_to_f32(d & 0xffff) * (float)(i8)(s >> 8 * h & 0xff);
      if (m.min == TWO) add = -(half_to_f32(d >> 16) * (float)(s >> 8 * (m.halves + h) & 0xff));
    }
  }
  // Whether codes less zero are exact in bf16, and nothing is added.
  static DEV bool short_codes(const Matrix& m) {
    return m.min == ZERO && m.codes != TABLE && (LO == 8 ? m.zero == 128 : true);
  }
  // Eight weights of a step as pairs, taken apart already: (high + low of the scale) x code, the rest of
  // the first product being exact.
  DEV void decode_short(const Matrix& m, int step, u32* high, u32* low) const {
    float scale, add;
    scales(m, step >= 2, scale, add);
    u32 s = bf16x2(scale, scale);
    float rest = scale - bf16_low(s);
    decode_short_with(m, step, s, bf16x2(rest, rest), high, low);
  }
  DEV void decode_short_with(const Matrix& m, int step, u32 s, u32 s_low, u32* high, u32* low) const {
    u32 zero = bf16x2((float)(128 + m.zero), (float)(128 + m.zero));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      u32 c = quad<LO>(lo, 2 * step + i);
      if constexpr (HI != 0) c |= quad<HI>(hi, 2 * step + i) << LO;
      if (LO == 1 && HI == 0 && m.codes == DOUBLE) c *= 2;
      u32 top = ~c & 0x80808080u;
      if constexpr (LO == 8) c &= 0x7f7f7f7fu;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        // Seven bits behind the exponent of 128; where there is an eighth, it says 128 or 256 less.
        u32 pick = e ? 0x4342 : 0x4140;
        u32 x = __byte_perm(c, 0x43434343, pick);
        x = minus2(x, LO == 8 ? __byte_perm(top, 0x43434343, pick) : zero);
        u32 h = times2(s, x);
        high[2 * i + e] = h;
        low[2 * i + e] = fused2(s_low, x, fused2(s, x, negated2(h)));
      }
    }
  }
  DEV void decode(const Matrix& m, int step, float* v) const {
    float scale, add;
    scales(m, step >= 2, scale, add);
    decode_with(m, step, scale, add, v);
  }
  DEV void decode_with(const Matrix& m, int step, float scale, float add, float* v) const {
    // A code in the low bits of 2^23 is a float; what is taken off again is exact.
    float zero = (float)(0x800000 + m.zero);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      u32 c = quad<LO>(lo, 2 * step + i);
      if constexpr (HI != 0) c |= quad<HI>(hi, 2 * step + i) << LO;
      if (LO == 4 && HI == 0 && m.codes == TABLE) c = look_up(m.table, c);
      if (LO == 1 && HI == 0 && m.codes == DOUBLE) c *= 2;
#pragma unroll
      for (int e = 0; e < 4; e++)
        v[4 * i + e] = scale * (__uint_as_float(__byte_perm(c, 0x4b000000, 0x7540 + e)) - zero) + add;
    }
  }
};

// Of two outputs.
template <int LO, int HI>
struct PlanesShare {
  static constexpr int SLOTS = STEPS;
  static constexpr bool EXACT = false;
  Unit<LO, HI> of[2];
  DEV void begin(const Matrix&, const Matrix&, const Lines&, u32, u32, u32) {}
  DEV void fetch(const Matrix& a, const Matrix& b, const Lines& line, u32 block, u32 end, u32 q, u32, int step, int, bool) {
    // All of it with the last step, whose weights are the last that are needed of the one before.
    if (step != STEPS - 1) return;
    u32 unit = min(min(block, end - 1) * 4 + q, a.units - 1);
    u32 span = unit / SPAN, n = span_units(a, span), u = unit % SPAN;
    of[0].fetch(a, line.panel[0] + (u64)span * a.span_bytes, line.row, n, u);
    of[1].fetch(b, line.panel[1] + (u64)span * b.span_bytes, line.row, n, u);
  }
  DEV void decode(const Matrix& m, u32 side, int step, int, float* v) const { of[side].decode(m, step, v); }
  DEV bool decode_short(const Matrix& m, u32 side, int step, int, u32* high, u32* low) const {
    if (!of[side].short_codes(m)) return false;
    of[side].decode_short(m, step, high, low);
    return true;
  }
};

// The same, one step of it, from spans of both outputs' panels in shared memory.
template <u32 KIND>
struct FloatPage : FloatShare<KIND, 1> {
  typedef FloatShare<KIND, 1> Of;
  static constexpr u32 BLOCKS = Of::BLOCKS;
  // As what a loop over pages keeps a matrix of which little is looked at.
  typedef const Matrix Kept;
  static DEV bool takes(const Matrix&) { return true; }
  DEV void fetch(const Matrix& a, const Matrix&, const u32 (&at)[2], u32 row, u32 block, u32, u32 q, u32 wide, int step) {
    u32 n = span_units(a, block / BLOCKS), last = n - 1, first = block % BLOCKS * Of::BLOCK;
    u32 u = first + (wide ? q * STEPS + step : step * 4 + q) * Of::EACH;
#pragma unroll
    for (u32 side = 0; side < 2; side++) {
      u32 from = at[side] + row * n * 16, *to = this->w[0][side];
      weights(from + min(u, last) * 16, to[0], to[1], to[2], to[3]);
      if constexpr (Of::EACH == 2) weights(from + min(u + 1, last) * 16, to[4], to[5], to[6], to[7]);
    }
  }
};
// How much of a matrix must be looked at for each unit: all; not what is added, nor codes that are not exact in bf16
// when zero is taken off; nor more than a scale, and spans are whole.
enum Looks : u32 { LONG, SHORT, SHORTEST };
template <bool COPY>
struct KeptAs {
  typedef const Matrix& Kept;
};
template <>
struct KeptAs<true> {
  typedef const Matrix Kept;
};
// Of planes what follows from a unit's scales is made once.
template <int LO, int HI, u32 LOOKS>
struct PlanesPage {
  static constexpr int SLOTS = 1;
  static constexpr bool EXACT = false;
  static constexpr u32 BLOCKS = SPAN / 4;
  typedef typename KeptAs<LOOKS != LONG>::Kept Kept;
  static DEV bool takes(const Matrix& m) {
    bool scale = m.levels == LEVEL_ONE && m.units % SPAN == 0;
    return LOOKS == LONG || Unit<LO, HI>::short_codes(m) && (LOOKS == SHORT || scale);
  }
  Unit<LO, HI> of[2];
  // Of each side and half of a unit: the scale's high and low part, twice each; or scale and what is added.
  u32 made[2][2][2];
  DEV void fetch(const Matrix& a, const Matrix& b, const u32 (&at)[2], u32 row, u32 block, u32 end, u32 q, u32, int step) {
    // A unit is all four steps.
    if (step != 0) return;
    if constexpr (LOOKS == SHORTEST) {
      u32 unit = row * SPAN + block % BLOCKS * 4 + q;
      of[0].fetch(at[0], unit), of[1].fetch(at[1], unit);
    } else {
      u32 unit = min(min(block, end - 1) * 4 + q, a.units - 1), n = span_units(a, unit / SPAN);
      of[0].fetch(a, at[0], row, n, unit % SPAN);
      of[1].fetch(b, at[1], row, n, unit % SPAN);
    }
#pragma unroll
    for (u32 side = 0; side < 2; side++)
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        float scale, add;
        if constexpr (LOOKS == SHORTEST) scale = half_to_f32(of[side].s);
        else of[side].scales(side ? b : a, half, scale, add);
        u32* to = made[side][half];
        if constexpr (LOOKS != LONG) to[0] = bf16x2(scale, scale), scale -= bf16_low(to[0]), to[1] = bf16x2(scale, scale);
        else to[0] = __float_as_uint(scale), to[1] = __float_as_uint(add);
      }
  }
  DEV void decode(const Matrix& m, u32 side, int step, int, float* v) const {
    const u32* k = made[side][step / 2];
    of[side].decode_with(m, step, __uint_as_float(k[0]), __uint_as_float(k[1]), v);
  }
  DEV bool decode_short(const Matrix& m, u32 side, int step, int, u32* high, u32* low) const {
    if constexpr (LOOKS != LONG) of[side].decode_short_with(m, step, made[side][step / 2][0], made[side][step / 2][1], high, low);
    return LOOKS != LONG;
  }
};

// The left side of the two instructions of a step: a lane has outputs a and b, eight apart, four inputs
// an instruction.
struct Left {
  u32 high[2][4], low[2][4];
};
template <class S>
DEV void take_apart(Left& x, const Matrix& a, const Matrix& b, const S& share, int step, int slot, u32 zero) {
#pragma unroll
  for (u32 side = 0; side < 2; side++) {
    if constexpr (S::EXACT) {
      // Already what the tensor cores take, but not where: a move, which would be made when the load
      // ends, and waited for; so it is a sum with a zero that the compiler cannot know.
#pragma unroll
      for (int i = 0; i < 4; i++) x.high[i / 2][i % 2 * 2 + side] = share.w[slot % S::SLOTS][side][i] + zero;
    } else {
      u32 high[4], low[4];
      if (!share.decode_short(side ? b : a, side, step, slot, high, low)) {
        float v[8];
        share.decode(side ? b : a, side, step, slot, v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          high[i] = bf16x2(v[2 * i], v[2 * i + 1]);
          low[i] = bf16x2(v[2 * i] - bf16_low(high[i]), v[2 * i + 1] - bf16_high(high[i]));
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++) x.high[i / 2][i % 2 * 2 + side] = high[i], x.low[i / 2][i % 2 * 2 + side] = low[i];
    }
  }
}

// Everything is in its register here, and stays until the product has read it.
DEV void keep(Left& x, bool low) {
#pragma unroll
  for (u32 i = 0; i < 8; i++) {
    wg_keep(x.high[i / 4][i % 4]);
    if (low) wg_keep(x.low[i / 4][i % 4]);
  }
}
#endif
