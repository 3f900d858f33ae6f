// How launches that are one kernel wait for each other: for the numbers themselves.
//
// What one of them leaves for another is a place that nobody else writes in this step, and holds a
// pattern that stands for nobody's number until then. Whoever needs a number reads it until it is one: no
// flag, no counter and no fence, so that a value is at its readers after one way through the second-level
// cache and back. Of each place there are two, for steps in turn: who writes into this step's also
// takes the number out of the next one's.
#pragma once
#include "common.cuh"

struct Fresh {
  // Whether what is read may not be there yet; bytes to the next step's place of what is written, 0 if
  // it is written for others than launches of this kernel.
  u32 polls, unused;
  long long next;
};

// No operation makes this NaN.
constexpr u32 NOBODY = 0xffffffffu;
DEV bool is_nobody(float v) { return __float_as_uint(v) == NOBODY; }

DEV float fresh_f32(const float* p) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
  return v;
}
DEV float4 fresh_f32x4(const float* p) {
  float4 v;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
  return v;
}
DEV bool is_nobody(float4 v) { return is_nobody(v.x) || is_nobody(v.y) || is_nobody(v.z) || is_nobody(v.w); }
// Until this one is there, for all lanes: what all blocks read again and again of rows that are not there would
// take the second-level cache from weights.
DEV void watch(const float* one) {
  while (is_nobody(fresh_f32(one))) {}
}

// Takes the number out of the next step's place.
DEV void take_out(float* at, long long next) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"((u8*)at + next), "r"(NOBODY) : "memory");
}
DEV void leave(float* at, float v, long long next) {
  // A copy of what a file holds may be any NaN.
  u32 w = is_nobody(v) ? 0x7fffffffu : __float_as_uint(v);
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(w) : "memory");
  if (next) take_out(at, next);
}
