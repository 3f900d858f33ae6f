// The norm of a row, in one order of sums wherever it is made: of every 128 columns lane c of four squares four of
// each 16 from 4 c. Two of its eight fours are added up in order, those sums in pairs, the four lanes in pairs, and blocks
// of columns in order.
#pragma once
#include "common.cuh"

DEV float squares_of_two(const float4& v, const float4& w) {
  float sum = v.x * v.x;
  sum = __fmaf_rn(v.y, v.y, sum), sum = __fmaf_rn(v.z, v.z, sum), sum = __fmaf_rn(v.w, v.w, sum);
  sum = __fmaf_rn(w.x, w.x, sum), sum = __fmaf_rn(w.y, w.y, sum), sum = __fmaf_rn(w.z, w.z, sum);
  return __fmaf_rn(w.w, w.w, sum);
}
// Of a lane's eight fours of a block.
DEV float squares_of(const float4 (&v)[8]) {
  return (squares_of_two(v[0], v[1]) + squares_of_two(v[2], v[3])) + (squares_of_two(v[4], v[5]) + squares_of_two(v[6], v[7]));
}
// Of lanes that differ in these two bits: all of them have the sum.
DEV float sum_of_lanes(float sum, u32 first, u32 second) {
  sum += __shfl_xor_sync(FULL, sum, first);
  return sum + __shfl_xor_sync(FULL, sum, second);
}
// Goes on from `sum` with so many blocks.
DEV float sum_of_blocks(float sum, const float* blocks, u32 n) {
#pragma unroll 4
  for (u32 i = 0; i < n; i++) sum += blocks[i];
  return sum;
}
// What a row is multiplied with.
DEV float norm_scale(float sum, u32 cols, float eps) { return 1.0f / sqrtf(__fadd_rn(sum / (float)cols, eps)); }
DEV float4 normed(float4 v, float scale, float4 w) {
  return make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
}
