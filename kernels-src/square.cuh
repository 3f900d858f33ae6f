// The norm of a row, in one order of sums wherever it is made, since who leaves a row squares it and who multiplies it
// has the norm's factor on its sums. Of every 64 columns fours are squared in order; of the four of them that are 16 columns apart
// pairs are added up, then those, then the four sums in pairs. Of what 64 columns come to, fours are added up in pairs,
// every eighth of those in order, and the eight in pairs: of those four apart first.
#pragma once
#include "common.cuh"

// Columns whose squares are one number.
constexpr u32 SQUARED = 64;

DEV float squares_of(const float4& v) {
  float sum = v.x * v.x;
  sum = __fmaf_rn(v.y, v.y, sum), sum = __fmaf_rn(v.z, v.z, sum);
  return __fmaf_rn(v.w, v.w, sum);
}
// Of lanes that differ in these two bits, among those that are here: all of them have the sum.
DEV float sum_of_lanes(float sum, u32 first, u32 second, u32 here = FULL) {
  sum += __shfl_xor_sync(here, sum, first);
  return sum + __shfl_xor_sync(here, sum, second);
}
// Of 64 columns, of which a lane has fours 16 columns apart, and three lanes beside it the others.
DEV float squares_of_lanes(const float4* v) {
  return sum_of_lanes((squares_of(v[0]) + squares_of(v[1])) + (squares_of(v[2]) + squares_of(v[3])), 1, 2);
}
// From one row's numbers to the next one's, of `n` each.
DEV u32 squares_stride(u32 n) { return n + 3 & ~3u; }
// What a row is multiplied with.
DEV float norm_scale(float sum, u32 cols, float eps) { return 1.0f / sqrtf(__fadd_rn(sum / (float)cols, eps)); }
// The same for a row's sums, of which each has it made: in a few instructions.
DEV float norm_factor(float sum, u32 cols, float eps) { return rsqrtf(__fmaf_rn(sum, 1.0f / (float)cols, eps)); }
DEV float4 normed(float4 v, float scale, float4 w) {
  return make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
}
