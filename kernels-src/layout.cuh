// How a weight matrix lies in memory. The host writes it (src/cuda/layout.rs draws it).
//
// A *unit* is what a lane takes at once: 32 columns of a row of planes, 16 bytes of floats. A *span*
// is up to 8 units of planes or 32 of floats of the 4 rows of a *panel*; a panel is its spans in order.
//
//   span of planes   lo [piece][unit][row] · hi [unit][row] · scales [unit][row] · d [row]
//   span of floats   [row][unit] of 16 bytes
#pragma once
#include "common.cuh"

enum Kind : u32 { F32 = 0, F16 = 1, BF16 = 2, PLANES = 3 };
enum Min : u32 { ZERO = 0, ONE = 1, TWO = 2 };
// What a code stands for: itself, its entry in a table (4 bits), its double.
enum Codes : u32 { PLAIN = 0, TABLE = 1, DOUBLE = 2 };
// Scales: f16 a unit, f16 times integers, powers of two.
enum Levels : u32 { LEVEL_ONE = 0, LEVEL_TWO = 1, EXPONENT = 2 };

struct Matrix {
  const u8* data;
  u32 rows, cols;
  // Units of a row, spans of a row, bytes of a full span and of a panel.
  u32 units, spans, span_bytes, panel_bytes;
  u32 kind;
  // Planes: bits of each, scales a unit (1 or 2, 0 where bits are counted: four units have one), levels of scales, where zero is.
  u32 lo, hi, halves, levels, min;
  int zero;
  u32 codes;
  u32 table[4];
};

// What a part of a span of planes has of a unit of a row: the how manieth.
DEV u32 place_of(u32 row, u32 unit) { return unit * PANEL + row; }
// Where the parts of a span of `n` units begin.
struct SpanAt {
  u32 hi, scales, d;
};
DEV u32 scale_bytes(const Matrix& m) {
  if (m.levels != LEVEL_ONE) return m.halves * (m.min == TWO ? 2 : 1);
  return m.min == ONE ? 4 : 2;
}
DEV u32 d_bytes(const Matrix& m) { return m.min == TWO ? 4 : 2; }
DEV SpanAt span_at(const Matrix& m, u32 n) {
  SpanAt at;
  at.hi = PANEL * n * 4 * m.lo;
  at.scales = at.hi + PANEL * n * 4 * m.hi;
  at.d = at.scales + PANEL * n * scale_bytes(m);
  return at;
}
template <u32 SPAN>
DEV u32 span_units(const Matrix& m, u32 span) {
  u32 rest = m.units - span * SPAN;
  return rest < SPAN ? rest : SPAN;
}
// Of a span that is not the last one.
DEV u32 span_size(const Matrix& m) { return m.kind == PLANES ? PLANES_SPAN : FLOATS_SPAN; }

// Four codes of a plane, a byte each: quad `q` of the unit whose words are `w`.
template <int BITS>
constexpr u32 CODES = BITS == 8 ? 0xffffffffu : BITS == 4 ? 0x0f0f0f0fu : BITS == 2 ? 0x03030303u : 0x01010101u;
template <int BITS>
DEV u32 quad(const u32* w, int q) { return (w[q % BITS] >> q / BITS * BITS) & CODES<BITS>; }
// The same where they are in their bytes: times a power of two.
template <int BITS>
DEV u32 placed(const u32* w, int q) { return w[q % BITS] & CODES<BITS> << q / BITS * BITS; }

// The entries of a table of 16 bytes that four codes name.
DEV u32 look_up(const u32* table, u32 codes) {
  u32 select = (codes | codes >> 4);
  select = (select & 0xff) | ((select >> 8) & 0xff00);
  // Three bits of each code pick within a half, the fourth picks the half.
  u32 low = __byte_perm(table[0], table[1], select & 0x7777);
  u32 high = __byte_perm(table[2], table[3], select & 0x7777);
  u32 mask = ((codes >> 3) & 0x01010101u) * 0xffu;
  return (low & ~mask) | (high & mask);
}

// The same of four codes of 4 bits that lie in a row.
DEV u32 look_up_next(const u32* table, u32 codes) {
  u32 low = __byte_perm(table[0], table[1], codes & 0x7777), high = __byte_perm(table[2], table[3], codes & 0x7777);
  return __byte_perm(low, high, 0x3210 | codes >> 1 & 0x4444);
}
// The same of all eight of a word.
DEV void look_up_all(const u32* table, u32 codes, u32& first, u32& second) {
  u32 within = codes & 0x77777777, half = 0x32103210 | codes >> 1 & 0x44444444;
  auto four = [&](u32 within, u32 half) {
    return __byte_perm(__byte_perm(table[0], table[1], within), __byte_perm(table[2], table[3], within), half);
  };
  first = four(within, half), second = four(within >> 16, half >> 16);
}
// A scale that is a power of two.
DEV float power_of(u32 e) { return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

// The scales of one unit of one row, as f32: value = s[h] * (code - zero) + m[h].
struct Scales {
  float s0, s1, m0, m1;
};
// `span` is where the span lies, in shared or global memory.
DEV Scales scales_of(const Matrix& m, const u8* span, u32 n, u32 row, u32 unit) {
  SpanAt at = span_at(m, n);
  Scales r;
  r.m0 = r.m1 = 0.0f;
  const u8* p = span + at.scales + place_of(row, unit) * scale_bytes(m);
  if (m.levels == EXPONENT) {
    r.s0 = r.s1 = power_of(*p);
    return r;
  }
  if (m.levels == LEVEL_ONE) {
    if (m.min == ONE) {
      u32 w = *(const u32*)p;
      r.s0 = half_to_f32(w & 0xffff);
      r.m0 = half_to_f32(w >> 16);
    } else {
      r.s0 = half_to_f32(*(const u16*)p);
    }
    r.s1 = r.s0;
    r.m1 = r.m0;
    return r;
  }
  const u8* pd = span + at.d + row * d_bytes(m);
  float d = half_to_f32(*(const u16*)pd);
  r.s0 = d * (float)(i8)p[0];
  r.s1 = m.halves == 2 ? d * (float)(i8)p[1] : r.s0;
  if (m.min == TWO) {
    float dm = half_to_f32(*(const u16*)(pd + 2));
    r.m0 = -(dm * (float)p[m.halves]);
    r.m1 = m.halves == 2 ? -(dm * (float)p[3]) : r.m0;
  }
  return r;
}

// One value, slowly: for embeddings, which read one row a token. `skip` bytes are before the matrix.
DEV float value_at(const Matrix& m, u32 row, u32 col, u64 skip) {
  u32 per = m.kind == PLANES ? 32 : m.kind == F32 ? 4 : 8;
  u32 u = col / per, e = col % per, size = span_size(m), span = u / size, unit = u % size, r = row % PANEL;
  u32 n = min(size, m.units - span * size);
  const u8* p = m.data + skip + (u64)(row / PANEL) * m.panel_bytes + (u64)span * m.span_bytes;
  if (m.kind == F32) return *(const float*)(p + (r * n + unit) * 16 + e * 4);
  if (m.kind != PLANES) {
    u32 h = *(const u16*)(p + (r * n + unit) * 16 + e * 2);
    return m.kind == F16 ? half_to_f32(h) : __uint_as_float(h << 16);
  }
  u32 q = e / 4, code = 0;
  {
    u32 word = q % m.lo, shift = q / m.lo * m.lo;
    // 8 bits come in two pieces of 16 bytes.
    u32 bytes = m.lo == 8 ? 16 : 4 * m.lo, piece = word * 4 / bytes, in = word * 4 % bytes;
    u32 w = *(const u32*)(p + (piece * PANEL * n + place_of(r, unit)) * bytes + in);
    code = (w >> (shift + 8 * (e % 4))) & ((1u << m.lo) - 1);
  }
  if (m.hi) {
    u32 w = *(const u32*)(p + span_at(m, n).hi + place_of(r, unit) * 4 * m.hi + q % m.hi * 4);
    code |= ((w >> (q / m.hi * m.hi + 8 * (e % 4))) & ((1u << m.hi) - 1)) << m.lo;
  }
  if (m.codes == TABLE) code = (m.table[code / 4] >> (8 * (code % 4))) & 0xff;
  if (m.codes == DOUBLE) code *= 2;
  Scales s = scales_of(m, p, n, r, unit);
  float scale = e < 16 ? s.s0 : s.s1, add = e < 16 ? s.m0 : s.m1;
  float v = scale * (float)((int)code - m.zero);
  return m.min == ZERO ? v : __fadd_rn(v, add);
}
