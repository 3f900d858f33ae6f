// Rows as integers of 16 bits: how numbers become such, and how a link leaves them to the next one.
#pragma once
#include "fresh.cuh"

// How numbers become integers of 16 bits that have one scale.
struct Rounding {
  // An integer added to 1.5 * 2^23 is in the low bits of the float.
  static constexpr float MAGIC = 12582912.0f;
  static constexpr u32 BASE = 0x4b400000u;
  float scale, inverse;
  // By the greatest. NaN and infinity make the scale NaN; what is too small to divide by makes it 0.
  DEV explicit Rounding(float most) {
    bool finite = most < INFINITY, some = most > 1e-30f;
    inverse = some ? 32512.0f * reciprocal(most) : 0.0f;
    scale = !finite ? __uint_as_float(0x7fc00000u) : some ? most * (1.0f / 32512.0f) : 0.0f;
  }
  // In the low half of a word.
  DEV u32 of(float v) const { return __float_as_uint(__fmaf_rn(v, inverse, MAGIC)); }
  static DEV float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
  }
};
// Of numbers without a sign the order of floats, with what is none above all.
DEV float greatest_of_warp(float v) { return __uint_as_float(__reduce_max_sync(FULL, __float_as_uint(v))); }

// Eight columns of a lane as integers of 16 bits, in the low halves of words.
struct Eight {
  static constexpr u32 BASE = Rounding::BASE;
  float in[8], scale;
  u32 n[8];
  DEV explicit Eight(const float4* v) : in{v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w} {}
  // Of LANES in a row, which have one scale.
  template <u32 LANES>
  DEV void make() {
    float most = fabsf(in[0]);
#pragma unroll
    for (int i = 1; i < 8; i++) most = greater(most, fabsf(in[i]));
    if constexpr (LANES == 32) {
      most = greatest_of_warp(most);
    } else {
#pragma unroll
      for (u32 o = 1; o < LANES; o *= 2) most = greater(most, __shfl_xor_sync(FULL, most, o));
    }
    Rounding rounding(most);
    scale = rounding.scale;
#pragma unroll
    for (int i = 0; i < 8; i++) n[i] = rounding.of(in[i]);
  }
  // NaN if either is.
  static DEV float greater(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
  }
};

// What words of integers are left as, so that none is nobody's: two of 16 bits, of which none is the lowest, and a sum of 16 of them.
constexpr u32 PAIR = 0x7fff7fffu, SUM = 0x40000000u;
// Leaves 32 columns, one a lane, as integers of 16 bits for who multiplies them by planes: a row's integers, then of each 32
// columns a scale and the sums of halves. Integers go by fours of the first half and of the second in turn.
DEV void leave_integers(float* row, u32 cols, u32 first, float v, long long next, u32 lane) {
  Rounding rounding(greatest_of_warp(fabsf(v)));
  u32 n = rounding.of(v), column = lane / 2 % 2 * 16 + lane / 4 % 4 * 4 + lane % 2 * 2;
  u32 two = __byte_perm(__shfl_sync(FULL, n, column), __shfl_sync(FULL, n, column + 1), 0x5410) ^ PAIR;
  int sum0 = __reduce_add_sync(FULL, lane < 16 ? (int)(n - Rounding::BASE) : 0);
  int sum1 = __reduce_add_sync(FULL, lane < 16 ? 0 : (int)(n - Rounding::BASE));
  u32 said = lane == 16 ? __float_as_uint(rounding.scale) : lane == 17 ? (u32)sum0 ^ SUM : lane == 18 ? (u32)sum1 ^ SUM : 0;
  float* at = lane < 16 ? row + first / 2 + lane : row + cols / 2 + first / 8 + (lane - 16);
  if (lane < 20) leave(at, __uint_as_float(lane < 16 ? two : said), next);
}
