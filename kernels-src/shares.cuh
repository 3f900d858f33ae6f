// The left side of a product on sm_90a: weights from memory to the lanes that multiply them.
#pragma once
#include "gemm.cuh"
#include "wgmma.cuh"

// What scales of planes are: one a unit; that and what is added; those of two levels, with what is added where formats of
// these planes have it; a power of two a unit, of codes of which a bit is the sign and the others name entries of a table; one a
// unit, or a power of two, of codes that name entries; or whatever each matrix says, of codes too.
enum Looks : u32 { LOOK_SCALE, LOOK_LEAST, LOOK_LEVELS, LOOK_SIGNS, LOOK_TABLE, LOOK_ANY };
// Those that there are of planes of LO and HI bits (src/cuda/layout.rs takes no others).
#define OF_PLANES(DO)                                     \
  DO(8, 0, LOOK_SCALE)                                    \
  DO(4, 0, LOOK_SCALE, LOOK_LEAST, LOOK_LEVELS, LOOK_SIGNS, LOOK_TABLE, LOOK_ANY) \
  DO(2, 0, LOOK_SCALE, LOOK_LEVELS, LOOK_ANY)             \
  DO(1, 0, LOOK_SCALE)                                    \
  DO(2, 1, LOOK_LEVELS)                                   \
  DO(4, 1, LOOK_SCALE, LOOK_LEAST, LOOK_LEVELS, LOOK_ANY) \
  DO(4, 2, LOOK_LEVELS)

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
  DEV void weights_short(AT at, u32& a) {                                                                            \
    asm volatile("{\n.reg .u16 h;\nld." FROM ".u16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(a) : HOW(at));           \
  }                                                                                                                  \
  DEV void weights_short_or_byte(AT at, bool byte, u32& a) {                                                         \
    asm volatile("{\n.reg .pred q;\nsetp.ne.u32 q, %2, 0;\n@q ld." FROM ".u8 %0, [%1];\n"                           \
                 "@!q ld." FROM ".u16 %0, [%1];\n}" : "=&r"(a) : HOW(at), "r"((u32)byte));                           \
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
// is in its slot, which counts on through as many blocks as slots hold. Of 32 inputs a lane has 8 in a row.
template <u32 KIND, int SLOTS_ = STEPS>
struct FloatShare {
  static constexpr int SLOTS = SLOTS_;
  static constexpr bool EXACT = KIND == BF16, SCALED = false, SUMMED = false;
  static constexpr u32 WORDS = KIND == F32 ? 8 : 4;
  static constexpr u32 PER = KIND == F32 ? 4 : 8, BLOCK = 128 / PER, EACH = 8 / PER, BLOCKS = FLOATS_SPAN / BLOCK;
  // Bytes of a panel's span.
  static constexpr u32 SPAN = PANEL * FLOATS_SPAN * 16;
  u32 w[SLOTS][2][WORDS];
  // Where the lane's first units of a block are, and how many there are up to the row's last.
  const u8* at[2];
  int room;
  // From unit `unit` on, where `last` is the last one.
  template <class At>
  static DEV void load(At row, int unit, int last, u32* to) {
    At from = row + min(unit, last) * 16, second = row + min(unit + (int)EACH - 1, last) * 16;
    if constexpr (EACH == 2) {
      weights(from, to[0], to[1], to[2], to[3]);
      weights(second, to[4], to[5], to[6], to[7]);
    } else {
      weights(from, to[0], to[1], to[2], to[3]);
    }
  }
  DEV void look(const Matrix& m, u32 block, u32 q) {
    u32 n = span_units<FLOATS_SPAN>(m, block / BLOCKS);
    room = (int)n - 1 - (int)(block % BLOCKS * BLOCK + q * EACH);
  }
  DEV void begin(const Matrix& m, const Matrix&, const Matrix&, const Lines& line, u32 block, u32 q) {
    look(m, block, q);
    u32 span = block / BLOCKS, n = span_units<FLOATS_SPAN>(m, span);
    u32 from = span * m.span_bytes + (line.row * n + n - 1) * 16;
#pragma unroll
    for (u32 side = 0; side < 2; side++) at[side] = line.panel[side] + from - room * 16;
  }
  // Step `step` of `block`; the first step of a block goes on from the block before.
  DEV void fetch(const Matrix& m, const Matrix&, const Lines& line, u32 block, u32 end, u32 q, int step, int slot, bool first) {
    if (step == 0 && !first && block < end) {
      look(m, block, q);
      u32 on = block % BLOCKS != 0 ? BLOCK * 16
                                   : m.span_bytes - (FLOATS_SPAN - BLOCK) * 16 -
                                         line.row * (FLOATS_SPAN - span_units<FLOATS_SPAN>(m, block / BLOCKS)) * 16;
      at[0] += on, at[1] += on;
    }
    // Past the last input rows are zero: any weights will do.
#pragma unroll
    for (u32 side = 0; side < 2; side++) load(at[side], step * 4 * (int)EACH, room, w[slot % SLOTS][side]);
  }
  // Eight weights of a step.
  DEV void decode(u32 side, int slot, float* v) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      u32 word = w[slot % SLOTS][side][KIND == F32 ? i % WORDS : i / 2 % WORDS];
      v[i] = KIND == F32 ? __uint_as_float(word) : half_to_f32(i % 2 ? word >> 16 : word & 0xffff);
    }
  }
};

// The left side of the two instructions of a step: a lane has outputs a and b, eight apart, four inputs
// an instruction.
struct Left {
  u32 high[2][4], low[2][4];
};
template <u32 KIND, int SLOTS>
DEV void take_apart(Left& x, const FloatShare<KIND, SLOTS>& share, const Matrix&, const Matrix&, int slot, u32 zero) {
#pragma unroll
  for (u32 side = 0; side < 2; side++) {
    if constexpr (KIND == BF16) {
      // Already what the tensor cores take, but not where: a move, which would be made when the load
      // ends, and waited for; so it is a sum with a zero that the compiler cannot know.
#pragma unroll
      for (int i = 0; i < 4; i++) x.high[i / 2][i % 2 * 2 + side] = share.w[slot % SLOTS][side][i] + zero;
    } else {
      float v[8];
      share.decode(side, slot, v);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        u32 high = bf16x2(v[2 * i], v[2 * i + 1]);
        x.high[i / 2][i % 2 * 2 + side] = high;
        x.low[i / 2][i % 2 * 2 + side] = bf16x2(v[2 * i] - bf16_low(high), v[2 * i + 1] - bf16_high(high));
      }
    }
  }
}

// The same, one step of it, from spans of both outputs' panels in shared memory. WHOLE: rows end with a block.
template <u32 KIND>
struct FloatPage : FloatShare<KIND, 1> {
  typedef FloatShare<KIND, 1> Of;
  static constexpr u32 BLOCKS = Of::BLOCKS;
  static constexpr int AT_ONCE = 1;
  // Of the block at hand: where rows begin, the lane's first unit, and the last one of the span.
  u32 from[2];
  int unit, last;
  DEV void begin(const Matrix&, const Matrix&, const Matrix&, u32) { from[0] = from[1] = 0, unit = last = 0; }
  DEV void turn(const Matrix& a, const Matrix&, const u32 (&at)[2], u32 row, u32 block, bool first, u32 q) {
    if (!first && block % BLOCKS != 0) {
      unit += Of::BLOCK;
      return;
    }
    u32 n = span_units<FLOATS_SPAN>(a, block / BLOCKS);
    from[0] = at[0] + row * n * 16, from[1] = at[1] + row * n * 16;
    unit = (int)(block % BLOCKS * Of::BLOCK + q * Of::EACH), last = (int)n - 1;
  }
  template <bool WHOLE>
  DEV void fetch(const Matrix&, const Matrix&, u32, int step) {
#pragma unroll
    for (u32 side = 0; side < 2; side++)
      this->load(from[side] + unit * 16, step * 4 * (int)Of::EACH, WHOLE ? 1 << 20 : last - unit, this->w[0][side]);
  }
};

// Planes of codes. A step is a unit, 32 inputs, whose codes are multiplied as they are, less zero: exact in bf16. What a
// unit comes to is a sum of its own, from zero, and the scale is multiplied into that; where a unit may have two
// scales, each half is a sum. What is added to weights goes with sums of the rows (split.cuh), which are inputs of
// another instruction for each block: lane q has what is added in the block's unit q.

// Two bf16 at once.
DEV u32 minus2(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Both are a number.
DEV u32 twice(float v) { return bf16x2(v, v); }

template <int LO, int HI, u32 LOOKS, int SLOTS_, class At>
struct PlanesShare {
  static constexpr int SLOTS = SLOTS_, HIGH = HI ? HI : 1;
  static constexpr bool EXACT = true, SCALED = true, EIGHT = LO == 8;
  // Sums of a unit; blocks of a span.
  static constexpr u32 PARTS = LO == 2 || HI == 2 ? 2 : 1, BLOCKS = PLANES_SPAN / STEPS;
  static constexpr bool ADDS = LOOKS == LOOK_LEAST || LOOKS == LOOK_LEVELS && HI != 2 && !(LO == 2 && HI == 1);
  // Bytes of a unit's scales and of a panel's span, at most: codes, those scales, and what they have in common.
  static constexpr bool SIGNS = LOOKS == LOOK_SIGNS;
  static constexpr u32 UNIT_SCALES = SIGNS ? 1 : LOOKS == LOOK_SCALE || LOOKS == LOOK_TABLE ? 2 : LOOKS == LOOK_LEVELS ? PARTS * (1 + ADDS) : 4;
  static constexpr u32 SPAN = PANEL * (PLANES_SPAN * (4 * (LO + HI) + UNIT_SCALES) + (LOOKS == LOOK_LEVELS || LOOKS == LOOK_ANY ? 4 : 0));
  // Whether sums of rows may be needed.
  static constexpr bool SUMMED = ADDS || LOOKS == LOOK_ANY;
  // What is taken off codes where something is added to weights, and given back with that: else both would be large where
  // weights are small, and what is left of a row's largest inputs would be their rounding.
  static constexpr int CENTRE = 1 << LO + HI - 1;
  // Of a unit of an output what a lane's codes are in, of 8 bits of each half of the inputs, and its scales.
  struct Unit {
    u32 lo[EIGHT ? 2 : 1], hi, s, d;
  };
  // What follows from them, of each output.
  struct Made {
    float scale[2][PARTS];
  };
  Unit of[SLOTS][2];
  // Scales of a block's unit q, where something is added.
  u32 own[2];
  // Where a lane's first unit of a block is; of 8 bits the second half is the high plane. In shared memory that of each
  // output; in memory, where an address has two registers, from where each output's span is, the same for both if alike.
  static constexpr bool SHARED = sizeof(At) == 4;
  static constexpr u32 BOTH = SHARED, APART = SHARED || LOOKS == LOOK_ANY;
  At at[2];
  u32 lo[1 + BOTH], hi[1 + BOTH], s[1 + APART], d[1 + APART];
  // Units behind that one up to the last of the row or of the span; where in a word quads are; what is taken off each output's codes.
  int room;
  u32 shift, shift_high, zero[2];
  // Of all parts, if there is one: that of the first, which is always in the same place. Where codes have a sign: the first
  // entries as bf16, four high bytes to a word, and then the low ones.
  const u32* table;
  u32 wide[SIGNS ? 4 : 1];

  // All parts of a product have the same planes, but codes and scales of their own.
  static DEV bool takes(const Matrix& a, const Matrix& b, const Matrix& part) {
    bool alike = part.codes == TABLE && part.levels == a.levels && part.levels == b.levels;
    return takes(a) && takes(b) && (LOOKS != LOOK_TABLE && !SIGNS || alike);
  }
  static DEV bool takes(const Matrix& m) {
    if (LOOKS == LOOK_ANY) return true;
    if (SIGNS) return m.codes == TABLE && m.zero == 128 && m.levels == EXPONENT && has_signs(m.table);
    if (LOOKS == LOOK_TABLE) return m.codes == TABLE && m.zero == 128 && m.levels != LEVEL_TWO && m.min == ZERO;
    if (m.codes == TABLE || EIGHT && m.zero != 128) return false;
    if (LOOKS == LOOK_LEVELS) return m.levels == LEVEL_TWO && m.halves == PARTS && m.min == (ADDS ? TWO : ZERO);
    return m.levels == LEVEL_ONE && m.min == (LOOKS == LOOK_LEAST ? ONE : ZERO);
  }
  // Whether the second half of entries is the first one with the other sign: both are 256 together.
  static DEV bool has_signs(const u32* table) {
    auto none = [](u32 a, u32 b) { return ((a & 0x7f7f7f7f) + (b & 0x7f7f7f7f) ^ (a ^ b) & 0x80808080) == 0; };
    return none(table[0], table[2]) && none(table[1], table[3]);
  }
  static DEV bool is_table(const Matrix& m) { return LOOKS == LOOK_ANY && LO == 4 && HI == 0 && m.codes == TABLE; }
  static DEV bool adds_of(const Matrix& m) { return LOOKS == LOOK_ANY ? m.min != ZERO : ADDS; }
  static DEV u32 scale_of(const Matrix& m) {
    return LOOKS == LOOK_TABLE || LOOKS == LOOK_ANY ? scale_bytes(m) : UNIT_SCALES;
  }
  static DEV u32 d_of(const Matrix& m) {
    return LOOKS == LOOK_LEVELS ? 2 + 2 * ADDS : LOOKS == LOOK_ANY && m.levels == LEVEL_TWO ? d_bytes(m) : 0;
  }

  // Lane q of four has the quads `q` and `q + 4` of a unit.
  DEV void begin(const Matrix& a, const Matrix& b, const Matrix& part, u32 q) {
    table = part.table, wide[0] = 0;
    if constexpr (SIGNS) {
      u32 pair[4];
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        auto entry = [&](u32 i) { return (float)(table[i / 4] >> i % 4 * 8 & 0xff) - 128.0f; };
        pair[i] = bf16x2(entry(2 * i), entry(2 * i + 1));
      }
#pragma unroll
      for (u32 i = 0; i < 2; i++)
        wide[i] = __byte_perm(pair[2 * i], pair[2 * i + 1], 0x7531), wide[2 + i] = __byte_perm(pair[2 * i], pair[2 * i + 1], 0x6420);
    }
    shift = LO >= 4 ? 0 : q / LO * LO, shift_high = HI ? q / HIGH * HIGH : 0, room = 0;
#pragma unroll
    for (u32 side = 0; side < 2; side++) {
      const Matrix& m = side ? b : a;
      zero[side] = twice((float)(EIGHT || is_table(m) ? m.zero - 128 : 128 + (adds_of(m) ? CENTRE : m.zero)));
      // A value for each on every way: what has none would be alive in all of a kernel.
      own[side] = 0, at[side] = At(), lo[side * BOTH] = hi[side * BOTH] = s[side * APART] = d[side * APART] = 0;
    }
  }
  // A block of a span of `n` units, from its unit `first` on.
  DEV void look(const Matrix& a, const Matrix& b, u32 row, u32 first, u32 n, u32 q) {
    u32 unit = place_of(row, first), all = PANEL * n;
#pragma unroll
    for (u32 side = 0; side < 1 + APART; side++) {
      const Matrix& m = side ? b : a;
      u32 from = SHARED ? (u32)(u64)at[side] : 0, scales = from + all * 4 * (LO + HI);
      s[side] = scales + unit * scale_of(m);
      d[side] = scales + all * scale_of(m) + row * d_of(m);
      if (side <= BOTH) {
        lo[side] = from + (EIGHT ? unit * 16 + q * 4 : unit * 4 * LO + q % LO * 4);
        hi[side] = EIGHT ? lo[side] + all * 16 : from + all * 4 * LO + unit * 4 * HI + q % HIGH * 4;
      }
    }
  }
  // The block so many behind, of a span of as many units.
  DEV void go_on(const Matrix& a, const Matrix& b, int blocks) {
    int places = blocks * STEPS * (int)PANEL;
#pragma unroll
    for (u32 side = 0; side < 1 + APART; side++) {
      s[side] += places * (int)scale_of(side ? b : a);
      if (side <= BOTH) lo[side] += places * (EIGHT ? 16 : 4 * LO), hi[side] += places * (EIGHT ? 16 : 4 * HI);
    }
  }
  // The unit of a step. Past the last one, where rows are zeros, scales are, too: what is there may be anything.
  template <bool WHOLE>
  DEV void unit(const Matrix& a, const Matrix& b, u32 q, int step, int slot) {
    u32 k = PANEL * step;
#pragma unroll
    for (u32 side = 0; side < 2; side++) {
      Unit& u = of[slot % SLOTS][side];
      const Matrix& m = side ? b : a;
      At from = SHARED ? At() : at[side], scales = from + s[side * APART] + k * scale_of(m), two = from + d[side * APART];
      weights(from + lo[side * BOTH] + k * (EIGHT ? 16 : 4 * LO), u.lo[0]);
      if constexpr (EIGHT) weights(from + hi[side * BOTH] + k * 16, u.lo[EIGHT]);
      if constexpr (HI != 0) weights(from + hi[side * BOTH] + k * 4 * HI, u.hi);
      auto load = [&](At at, u32& to) {
        if constexpr (LOOKS == LOOK_ANY) weights_of(at, scale_of(m), to);
        else if constexpr (SIGNS) weights_of(at, 1, to);
        else if constexpr (LOOKS == LOOK_TABLE) weights_short_or_byte(at, a.levels == EXPONENT, to);
        else if constexpr (LOOKS == LOOK_LEAST || LOOKS == LOOK_LEVELS && PARTS * (1 + ADDS) == 4) weights(at, to);
        else weights_short(at, to);
      };
      load(scales, u.s);
      if (!WHOLE && step > room) u.s = 0;
      if (SUMMED && step == STEPS - 1) {
        load(from + s[side * APART] + PANEL * q * scale_of(m), own[side]);
        if (!WHOLE && (int)q > room) own[side] = 0;
      }
      // That of a block's units is the same.
      if (step >= SLOTS) continue;
      if constexpr (LOOKS == LOOK_ANY) weights_of(two, d_of(m), u.d);
      else if constexpr (LOOKS == LOOK_LEVELS && ADDS) weights(two, u.d);
      else if constexpr (LOOKS == LOOK_LEVELS) weights_short(two, u.d);
    }
  }

  // As `scales_of` in layout.cuh, of codes less their centre where something is added.
  DEV Made make(const Matrix& a, const Matrix& b, int slot) const {
    Made made;
#pragma unroll
    for (u32 side = 0; side < 2; side++)
#pragma unroll
      for (u32 part = 0; part < PARTS; part++) {
        const Matrix& m = side ? b : a;
        const Unit& u = of[slot % SLOTS][side];
        float& scale = made.scale[side][part];
        if (LOOKS == LOOK_LEVELS || LOOKS == LOOK_ANY && m.levels == LEVEL_TWO) {
          u32 halves = LOOKS == LOOK_LEVELS ? PARTS : m.halves, h = halves == 2 && part;
          scale = half_to_f32(u.d & 0xffff) * (float)(i8)(u.s >> 8 * h & 0xff);
        } else if (SIGNS || (LOOKS == LOOK_ANY || LOOKS == LOOK_TABLE) && m.levels == EXPONENT) {
          scale = power_of(u.s);
        } else {
          scale = half_to_f32(u.s & 0xffff);
        }
      }
    return made;
  }
  // What is added to weights, of codes less their centre, in the block's unit q: all of it, and where halves differ what the first
  // one has more. `slot` has what units have in common.
  struct Added {
    float of[PARTS][2];
    // As the left side of sums of rows.
    DEV void left(u32 part, u32 (&to)[4]) const {
#pragma unroll
      for (u32 side = 0; side < 2; side++) {
        float v = of[part][side];
        to[side] = twice(v), to[2 + side] = twice(v - bf16_low(to[side]));
      }
    }
  };
  DEV Added added(const Matrix& a, const Matrix& b, int slot) const {
    Added all;
#pragma unroll
    for (u32 side = 0; side < 2; side++) {
      const Matrix& m = side ? b : a;
      u32 s = own[side], d = of[slot % SLOTS][side].d;
      float add[PARTS] = {};
#pragma unroll
      for (u32 part = 0; part < PARTS; part++) {
        if (!adds_of(m)) continue;
        if (LOOKS == LOOK_LEVELS || LOOKS == LOOK_ANY && m.levels == LEVEL_TWO) {
          u32 halves = LOOKS == LOOK_LEVELS ? PARTS : m.halves, h = halves == 2 && part;
          float scale = half_to_f32(d & 0xffff) * (float)(i8)(s >> 8 * h & 0xff);
          add[part] = fmaf(CENTRE, scale, -(half_to_f32(d >> 16) * (float)(s >> 8 * (halves + h) & 0xff)));
        } else {
          add[part] = fmaf(CENTRE, half_to_f32(s & 0xffff), half_to_f32(s >> 16));
        }
      }
      all.of[0][side] = add[PARTS - 1];
      if (PARTS == 2) all.of[PARTS - 1][side] = add[0] - add[1];
    }
    return all;
  }
  // Two bytes, each less 128: seven bits behind the exponent of 128; where there is an eighth, it says 128 or 256 less.
  static DEV u32 less_128(u32 c, u32 pick) {
    return minus2(__byte_perm(c & 0x7f7f7f7f, 0x43434343, pick), __byte_perm(~c & 0x80808080, 0x43434343, pick));
  }
  // Codes of a lane's quad of a half, less zero, as pairs.
  DEV void codes(const Matrix& m, u32 side, int slot, u32 half, u32* pair) const {
    const Unit& u = of[slot % SLOTS][side];
    if constexpr (SIGNS) {
      // Half a word's codes at once, by twos of a quad of each half: the sign of a byte that is picked goes to all of it if the
      // fourth bit of its place is set.
#pragma unroll
      for (u32 e = 0; e < 2; e++) {
        u32 place = u.lo[0] >> 16 * e, three = (u.lo[0] & 0x77777777) >> 16 * e;
        u32 signs;
        asm("prmt.b32 %0, %1, %1, %2;" : "=r"(signs) : "r"(0x80808080), "r"(place));
        u32 high = __byte_perm(wide[0], wide[1], three) | signs << 1 & 0x80808080, low = __byte_perm(wide[2], wide[3], three);
        pair[e] = __byte_perm(low, high, half ? 0x7351 : 0x6240);
      }
      return;
    }
    if constexpr (LOOKS == LOOK_TABLE) {
      // A word's codes go by twos of a quad of each half.
#pragma unroll
      for (u32 e = 0; e < 2; e++) pair[e] = less_128(look_up_next(table, u.lo[0] >> 16 * e), half ? 0x4341 : 0x4240);
      return;
    }
    u32 c = EIGHT ? u.lo[EIGHT ? half : 0] : u.lo[0] >> shift + 4 * half & CODES<LO>;
    if constexpr (HI != 0) c |= (u.hi >> shift_high + 4 * half & CODES<HIGH>) << LO;
    bool named = is_table(m);
    if (named) c = look_up(m.table, c);
    if (LO == 1 && HI == 0 && m.codes == DOUBLE) c *= 2;
#pragma unroll
    for (u32 e = 0; e < 2; e++) {
      u32 pick = e ? 0x4342 : 0x4140;
      if (EIGHT || named) {
        pair[e] = less_128(c, pick);
        if (LOOKS == LOOK_ANY) pair[e] = minus2(pair[e], zero[side]);
      } else {
        pair[e] = minus2(__byte_perm(c, 0x43434343, pick), zero[side]);
      }
    }
  }
  // What the sums of a part of a unit add.
  template <u32 COUNT>
  static DEV void put(const Made& made, u32 part, const float* sum, float* acc) {
#pragma unroll
    for (u32 j = 0; j < COUNT; j++) acc[j] = fmaf(made.scale[j / 2 % 2][part], sum[j], acc[j]);
  }
};
template <int LO, int HI, u32 LOOKS, int SLOTS, class At>
DEV void take_apart(Left& x, const PlanesShare<LO, HI, LOOKS, SLOTS, At>& share, const Matrix& a, const Matrix& b, int slot, u32) {
#pragma unroll
  for (u32 side = 0; side < 2; side++)
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      u32 pair[2];
      share.codes(side ? b : a, side, slot, half, pair);
      x.high[half][side] = pair[0], x.high[half][2 + side] = pair[1];
    }
}

// From memory, as many steps ahead as there are slots.
template <int LO, int HI, u32 LOOKS, bool TABLES>
struct PlanesAhead : PlanesShare<LO, HI, LOOKS, STEPS / 2, const u8*> {
  typedef PlanesShare<LO, HI, LOOKS, STEPS / 2, const u8*> Of;
  // Each way takes registers from the others (with a table Q4_1's prompts were 8% slower): tables have a kernel.
  static constexpr bool WORTH = (LOOKS == LOOK_TABLE || LOOKS == LOOK_SIGNS) == TABLES;
  DEV void begin(const Matrix& a, const Matrix& b, const Matrix& part, const Lines& line, u32 block, u32 q) {
    Of::begin(a, b, part, q);
    this->at[0] = line.panel[0] + (u64)(block / Of::BLOCKS) * a.span_bytes;
    this->at[1] = line.panel[1] + (u64)(block / Of::BLOCKS) * b.span_bytes;
  }
  DEV void fetch(const Matrix& a, const Matrix& b, const Lines& line, u32 block, u32 end, u32 q, int step, int slot, bool first) {
    if (step == 0 && first) {
      this->room = (int)(a.units - block * STEPS) - 1;
      Of::look(a, b, line.row, block % Of::BLOCKS * STEPS, span_units<PLANES_SPAN>(a, block / Of::BLOCKS), q);
    } else if (step == 0 && block < end) {
      bool span = block % Of::BLOCKS == 0;
      this->room -= STEPS;
      if (span) this->at[0] += a.span_bytes, this->at[1] += b.span_bytes;
      // A short span's parts lie in other places.
      if (span && this->room + 1 < (int)PLANES_SPAN) Of::look(a, b, line.row, 0, this->room + 1, q);
      else Of::go_on(a, b, span ? 1 - (int)Of::BLOCKS : 1);
    }
    Of::template unit<false>(a, b, q, step, slot);
  }
};
// Units at once where eight rows alone give too little to do in the meantime; not where each has several sums, whose order
// it would change.
DEV constexpr int at_once(int lo, int hi, u32 looks) { return (looks == LOOK_SCALE || looks == LOOK_SIGNS || looks == LOOK_TABLE) && lo != 2 && hi != 2 ? 2 : 1; }
// From spans in shared memory, of both outputs' panels. WHOLE: rows end with a block.
template <int LO, int HI, u32 LOOKS, int AT_ONCE_>
struct PlanesPage : PlanesShare<LO, HI, LOOKS, AT_ONCE_, u32> {
  typedef PlanesShare<LO, HI, LOOKS, AT_ONCE_, u32> Of;
  static constexpr int AT_ONCE = AT_ONCE_;
  static constexpr u32 BLOCKS = Of::BLOCKS;
  DEV void turn(const Matrix& a, const Matrix& b, const u32 (&at)[2], u32 row, u32 block, bool first, u32 q) {
    if (first || block % BLOCKS == 0) {
      this->at[0] = at[0], this->at[1] = at[1];
      u32 unit = block % BLOCKS * STEPS, n = span_units<PLANES_SPAN>(a, block / BLOCKS);
      this->room = (int)(n - unit) - 1;
      Of::look(a, b, row, unit, n, q);
    } else {
      this->room -= STEPS;
      Of::go_on(a, b, 1);
    }
  }
  template <bool WHOLE>
  DEV void fetch(const Matrix& a, const Matrix& b, u32 q, int step) { Of::template unit<WHOLE>(a, b, q, step, step); }
};

// Everything is in its register here, and stays until the product has read it.
DEV void keep(Left& x, bool low) {
#pragma unroll
  for (u32 i = 0; i < 8; i++) {
    wg_keep(x.high[i / 4][i % 4]);
    if (low) wg_keep(x.low[i / 4][i % 4]);
  }
}
#endif
