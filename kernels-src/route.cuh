// Which experts the only row of a step picks, made of their logits by every block of the product with them: so no launch stands
// between the router and that.
#pragma once
#include "common.cuh"

// Shares that are made of numbers: none, of e^x, of x.
enum Shares : u32 { AS_IT_IS, SOFTMAX, NORMALIZE };

struct Route {
  // Null if the picks are there.
  const float* logits;
  // Where picks go, and their shares.
  u32* ids;
  float* shares;
  // Logits, at most as many as a block has threads; what is done to all before the greatest are picked, and to those then.
  u32 count, before, after, unused;
};
constexpr u32 ROUTERS = 256, ROUTED = 32;

// Not inline, since registers are for weights. The expert of a pick, of so many; one of all blocks leaves what others ask for.
__device__ __noinline__ u32 route(const Route& r, u32 picks, u32 pick, bool leaves) {
  __shared__ __align__(16) u64 keys[ROUTERS];
  __shared__ float values[ROUTED], shared32[32];
  __shared__ u32 ids[ROUTED];
  u32 t = threadIdx.x;
  float v = t < r.count ? cg_f32(r.logits + t) : -INFINITY;
  if (r.before == SOFTMAX) {
    float most = block_max(v, shared32);
    v = t < r.count ? expf(v - most) : 0.0f;
    v /= block_sum(v, shared32);
  }
  u64 key = t < r.count ? pick_key(v, t) : 0;
  keys[t] = key;
  __syncthreads();
  // As many as are picked sooner.
  u32 rank = 0;
#pragma unroll 8
  for (u32 i = 0; i < r.count; i++) rank += keys[i] > key;
  if (t < r.count && rank < picks) ids[rank] = t, values[rank] = v;
  __syncthreads();
  if (leaves && t < 32) {
    float of = t < picks ? values[t] : -INFINITY;
    if (r.after == SOFTMAX) of = expf(of - warp_max(of));
    if (r.after != AS_IT_IS) of /= warp_sum(t < picks ? of : 0.0f);
    if (t < picks) __stcg(r.ids + t, ids[t]), __stcg(r.shares + t, of);
  }
  return ids[pick];
}
