// What becomes of heads between a product and attention.
#pragma once
#include "common.cuh"

// Heads as the product left them, and what becomes of them. Null is for what is not done.
struct Heads {
  const float *raw, *bias, *norm;
  const float2* turns;
  float eps;
  // How much of a head turns, and whether halves of it do or neighbours; floats from a row to the next, if there are several.
  u32 turn, halves, stride;
};

// The first and the second of a pair that turns by the angle of this cosine and sine: rounded in one way wherever several
// rows are made.
DEV float turned_first(float first, float second, float2 cs) {
  return __fmaf_rn(first, cs.x, -__fmul_rn(second, cs.y));
}
DEV float turned_second(float first, float second, float2 cs) {
  return __fmaf_rn(first, cs.y, __fmul_rn(second, cs.x));
}
