// What all kernels share: types that the host mirrors (src/cuda/abi.rs), conversions, and how a
// kernel waits for the one before it. No header of the toolkit is needed.
//
// Memory that an earlier kernel of the same step wrote is read with `cg_*` only, and never through
// a pointer that is `const __restrict__`: with programmatic launches a kernel is on its SM before
// its predecessor has finished, so a line of L1 may be stale and the non-coherent path is a race.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV __device__ __forceinline__
#define KERNEL extern "C" __global__ void

#if __CUDA_ARCH__ >= 900
#define HOPPER 1
#else
#define HOPPER 0
#endif

constexpr u32 FULL = 0xffffffffu;
#define INFINITY __int_as_float(0x7f800000)

// Rows of a panel, units of a span of planes and of floats (see layout.cuh), warps of a block that multiply.
constexpr u32 PANEL = 4;
constexpr u32 PLANES_SPAN = 8, FLOATS_SPAN = 32;
constexpr u32 WARPS = 8;

// Lets the next kernel of the stream onto the chip; it waits for our end before it reads what we
// write. Without programmatic launches both do nothing.
DEV void pdl_launch_next() {
#if HOPPER
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Every thread of every kernel must pass here, also those without work: a kernel that ended before
// its predecessor would let its successor start too early.
DEV void pdl_wait() {
#if HOPPER
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Loads past L1, for what an earlier kernel of the step wrote. No asm: the compiler may put several
// on their way before it uses the first.
DEV float cg_f32(const float* p) { return __ldcg(p); }
DEV float4 cg_f32x4(const float* p) { return __ldcg((const float4*)p); }
DEV u32 cg_u32(const u32* p) { return __ldcg(p); }
DEV uint4 cg_u32x4(const void* p) { return __ldcg((const uint4*)p); }

DEV float half_to_f32(u32 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((u16)h));
  return f;
}
DEV u16 f32_to_half(float f) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
// The lower and the upper bf16 of a word.
DEV float bf16_low(u32 w) { return __uint_as_float(w << 16); }
DEV float bf16_high(u32 w) { return __uint_as_float(w & 0xffff0000u); }
// `a` in the lower half.
DEV u32 bf16x2(float a, float b) {
  u32 w;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(b), "f"(a));
  return w;
}

DEV float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEV float4 times(float4 v, float by) { return make_float4(v.x * by, v.y * by, v.z * by, v.w * by); }

// Of a power of two: by one that is known only to the kernel a division takes twenty instructions in a row.
DEV u32 log_of(u32 n) { return 31 - __clz(n); }

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// 16 bytes to shared memory, asked for.
DEV void async_copy(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

DEV float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(FULL, v, o);
  return v;
}
DEV float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL, v, o));
  return v;
}
// The greatest over a block of at most 32 warps, for all threads; NaN is below all numbers.
DEV float block_max(float v, float* shared32) {
  v = warp_max(v);
  u32 warps = (blockDim.x + 31) / 32;
  if (threadIdx.x % 32 == 0) shared32[threadIdx.x / 32] = v;
  __syncthreads();
  float most = shared32[0];
  for (u32 i = 1; i < warps; i++) most = fmaxf(most, shared32[i]);
  __syncthreads();
  return most;
}
// The sum over a block of at most 32 warps, in one fixed order, for all threads.
DEV float block_sum(float v, float* shared32) {
  v = warp_sum(v);
  u32 warps = (blockDim.x + 31) / 32;
  if (threadIdx.x % 32 == 0) shared32[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (u32 i = 0; i < warps; i++) sum += shared32[i];
  __syncthreads();
  return sum;
}

// Elementwise functions, numbered as in src/cuda/abi.rs.
enum Unary : u32 {
  SILU, GELU, RELU, SIGMOID, TANH, SCALE, SOFTCAP, GELU_ERF, GELU_QUICK, RELU_SQUARED, SHIFT, CLAMP,
  EXP, SOFTPLUS, OVER
};
enum Binary : u32 { ADD, MUL, SUB, DIV };

// NaN stays NaN.
DEV float function(u32 kind, float x, float c, float d) {
  switch (kind) {
    case SILU: return x / (1.0f + expf(-x));
    case GELU: return 0.5f * x * (1.0f + tanhf(0.7978846f * (x + 0.044715f * x * x * x)));
    case RELU: return x < 0.0f ? 0.0f : x;
    case SIGMOID: return 1.0f / (1.0f + expf(-x));
    case TANH: return tanhf(x);
    case SCALE: return c * x;
    case SOFTCAP: return c * tanhf(x / c);
    case GELU_ERF: return x * normcdff(x);
    case GELU_QUICK: return x / (1.0f + expf(-1.702f * x));
    case RELU_SQUARED: return x < 0.0f ? 0.0f : x * x;
    case SHIFT: return x + c;
    case CLAMP: return x < c ? c : x > d ? d : x;
    case EXP: return expf(x);
    case SOFTPLUS: return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
    default: return c / x;
  }
}
// Not inline: it is long, and is called once an element at most.
__device__ __noinline__ float unary(u32 kind, float x, float c, float d) {
  return function(kind, x, c, d);
}
DEV float binary(u32 kind, float a, float b) {
  switch (kind) {
    case ADD: return a + b;
    case MUL: return a * b;
    case SUB: return a - b;
    default: return a / b;
  }
}

// Greater for what is picked sooner: greater values, and of equals the lower index. Never 0.
DEV u64 pick_key(float v, u32 at) {
  u32 bits = __float_as_uint(v == 0.0f ? 0.0f : v != v ? -INFINITY : v);
  return (u64)(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | (u32)~at;
}
