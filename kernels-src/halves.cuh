// Halves on tensor cores, for attention.
#pragma once
#include "common.cuh"

constexpr float LOG2E = 1.44269504f;

// Not inline: it is long, and few models have it.
__device__ __noinline__ float capped(float score, float cap) { return cap * tanhf(score / cap); }

// Four 8 by 8 matrices of halves, a row of them at each lane's address; or each of them transposed.
DEV void four(u32* w, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(at) : "memory");
}
DEV void four_turned(u32* w, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(at) : "memory");
}
DEV u32 turned(u32 w) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(w));
  return r;
}
// 16 by 16 times 16 by 8.
DEV void multiply(float* c, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// `a` in the lower half.
DEV u32 halves(float a, float b) {
  u32 w;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(b), "f"(a));
  return w;
}
// What is left of two numbers when their halves are taken away.
DEV u32 rest(float a, float b, u32 w) { return halves(a - half_to_f32(w & 0xffff), b - half_to_f32(w >> 16)); }
DEV float exp2_of(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEV float power(u32 exponent) { return __uint_as_float(exponent << 23); }
