// Attention of the only row of a step over its slot's cache.
//
// A block has up to four query heads that share a key head, and a run of chunks of positions; a warp
// has one head and 32 positions of each chunk, a position a lane. Keys and values of earlier steps
// are asked for before the kernel waits for its predecessor. What becomes of the row's own query,
// key and value heads (bias, norm, rotation, the write to the cache) is done here, from the product
// as it is. The block that finishes a head last adds up its runs.
//
// Weights are powers of two relative to a maximum that is rounded up to a whole power, so that what
// sums are scaled by when they are added up is exact.
//
// The code is short on purpose: a step runs it once a layer, when the caches have forgotten it.
#include "common.cuh"

constexpr float LOG2E = 1.44269504f;
// Query heads of a block, positions of a warp.
constexpr u32 QUERIES = 4, LANES = 32;
// Chunks that are worth a block of their own.
constexpr u32 RUN = 4;

// Heads as the product left them, and what becomes of them. Null is for what is not done.
struct Heads {
  const float *raw, *bias, *norm;
  const float2* turns;
  float eps;
  // How much of a head turns, and whether halves of it do or neighbours.
  u32 turn, halves, unused;
};

struct AttendOne {
  // Of keys and values `raw` is null where they are in the cache already.
  Heads q, k, v;
  float* out;
  u16 *keys, *values;
  const u32 *positions, *slots;
  // A score more of each head, if not null.
  const float* sinks;
  // Of each (query head, run): the values' sums; after all of them maximum and sum of the weights.
  float* partial;
  u32* arrived;
  // Query heads of a key head; parts of that many (a power of two) that blocks take.
  u32 kv_heads, group, taken, parts;
  u32 dim, context, window, runs, buffers;
  // Threads that bring a row of a cache, as a power of two.
  u32 pieces;
  float scale, softcap;
  u32 unused[2];
};
static_assert(sizeof(AttendOne) == 264, "src/cuda/abi.rs mirrors it");

// Not inline: it is long, and few models have it.
__device__ __noinline__ float capped(float score, float cap) { return cap * tanhf(score / cap); }

// Heads of up to 64 * PAIRS elements, of which a lane sums two of each 64.
template <u32 PAIRS>
DEV void attend_one(const AttendOne& p) {
  extern __shared__ __align__(16) u8 shared[];
  __shared__ __align__(16) float weights[8][LANES];
  __shared__ float most_of[8], total_of[8];
  __shared__ bool last;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = p.dim, line = dim + 8;
  u32 taken = p.taken, g = warp % taken, share = warp / taken, shares = 8 / taken, chunk = shares * LANES;
  u32 heads = p.kv_heads * p.parts, own = blockIdx.x % heads, run = blockIdx.x / heads;
  u32 kv = own / p.parts, of_group = own % p.parts * taken + g, head = kv * p.group + of_group;
  bool on = of_group < p.group;
  u32 tile = chunk * line;
  u16* tiles = (u16*)shared;
  float* q = (float*)(tiles + 2 * p.buffers * tile);
  float* fresh = q + QUERIES * dim;
  float* sums = fresh + 2 * dim;

  u32 position = cg_u32(p.positions), slot = cg_u32(p.slots);
  u32 first = p.window && position + 1 > p.window ? position + 1 - p.window : 0;
  u32 low = first / chunk, n = position / chunk + 1 - low, runs = min(p.runs, (n + RUN - 1) / RUN);
  if (run >= runs) {
    pdl_launch_next();
    pdl_wait();
    return;
  }
  u32 begin = low + n * run / runs, end = low + n * (run + 1) / runs;
  u64 cache = ((u64)slot * p.kv_heads + kv) * p.context * dim;
  // Asks for what earlier steps wrote of a chunk.
  auto ask = [&](u32 c, u32 buffer) {
    if (c < end) {
      u32 base = c * chunk, piece = threadIdx.x % (1u << p.pieces) * 8;
      u32 to = min(chunk, position - base), into = shared_address(tiles + 2 * buffer * tile);
#pragma unroll 1
      for (u32 i = (first > base ? first - base : 0) + (threadIdx.x >> p.pieces); i < to && piece < dim; i += 256 >> p.pieces) {
        u64 at = cache + (u64)(base + i) * dim + piece;
        u32 put = into + 2 * (i * line + piece);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(put), "l"(p.keys + at) : "memory");
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(put + 2 * tile), "l"(p.values + at) : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
#pragma unroll 1
  for (u32 b = 0; b < p.buffers; b++) ask(begin + b, b);
  // The row's own heads; whoever has the newest chunk makes key and value.
  bool newest = end == low + n;
  const Heads* h = nullptr;
  u16* stored = nullptr;
  float* made = q + g * dim;
  u32 which = head;
  if (share == 0) {
    if (on) h = &p.q;
  } else if (newest && warp < taken + 2) {
    bool key = warp == taken;
    h = key ? &p.k : &p.v;
    stored = (key ? p.keys : p.values) + cache + (u64)position * dim;
    made = fresh + (key ? 0 : dim);
    which = kv;
  }
  // Angles are nobody's output: they may come early.
  u32 pairs = h && h->turns ? h->turn / 2 : 0;
  float2 turns[PAIRS];
#pragma unroll
  for (u32 k = 0; k < PAIRS; k++) {
    u32 i = k * 32 + lane;
    turns[k] = i < pairs ? h->turns[(u64)position * pairs + i] : make_float2(1, 0);
  }
  pdl_launch_next();
  pdl_wait();

  // One head a warp.
  if (h && h->raw) {
    float squares = 0;
#pragma unroll 1
    for (u32 e = lane; e < dim; e += 32) {
      float x = cg_f32(h->raw + which * dim + e);
      if (h->bias) x += h->bias[which * dim + e];
      made[e] = x;
      squares += x * x;
    }
    if (h->norm) {
      float scale = rsqrtf(warp_sum(squares) / (float)dim + h->eps);
#pragma unroll 1
      for (u32 e = lane; e < dim; e += 32) made[e] = made[e] * scale * h->norm[e];
    }
    __syncwarp();
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++) {
      u32 i = k * 32 + lane;
      if (i >= pairs) break;
      u32 x = h->halves ? i : 2 * i, y = h->halves ? i + pairs : 2 * i + 1;
      float a = made[x], b = made[y];
      made[x] = a * turns[k].x - b * turns[k].y;
      made[y] = a * turns[k].y + b * turns[k].x;
    }
    __syncwarp();
  }
  // Several blocks may write the same to the cache.
  if (stored) {
#pragma unroll 1
    for (u32 e = lane; e < dim; e += 32) {
      if (h->raw) stored[e] = f32_to_half(made[e]);
      else made[e] = half_to_f32(__ldcg(stored + e));
    }
  }
  __syncthreads();

  float most = -INFINITY, total = 0;
  float2 sum[PAIRS];
#pragma unroll
  for (u32 k = 0; k < PAIRS; k++) sum[k] = make_float2(0, 0);
  u32 buffer = 0;
#pragma unroll 1
  for (u32 c = begin; c < end; c++) {
    if (p.buffers == 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else if (p.buffers == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
    else asm volatile("cp.async.wait_group 2;" ::: "memory");
    u32 base = c * chunk;
    u16 *keys = tiles + 2 * buffer * tile, *values = keys + tile;
    if (newest && c + 1 == end) {
#pragma unroll 1
      for (u32 e = threadIdx.x; e < 2 * dim; e += 256)
        (e < dim ? keys + e : values + e - dim)[(position - base) * line] = f32_to_half(fresh[e]);
    }
    __syncthreads();
    // This warp's positions, and which of them are seen.
    u32 start = base + share * LANES;
    u32 from = first > start ? first - start : 0, to = position + 1 > start ? min(LANES, position + 1 - start) : 0;
    if (on && from < to) {
      const u16* key = keys + (share * LANES + lane) * line;
      float score = 0;
#pragma unroll 4
      for (u32 d = 0; d < dim; d += 8) {
        uint4 w = *(const uint4*)(key + d);
        float4 a = *(const float4*)(q + g * dim + d), b = *(const float4*)(q + g * dim + d + 4);
        float x = half_to_f32(w.x & 0xffff) * a.x + half_to_f32(w.x >> 16) * a.y + half_to_f32(w.y & 0xffff) * a.z +
                  half_to_f32(w.y >> 16) * a.w;
        float y = half_to_f32(w.z & 0xffff) * b.x + half_to_f32(w.z >> 16) * b.y + half_to_f32(w.w & 0xffff) * b.z +
                  half_to_f32(w.w >> 16) * b.w;
        score += x + y;
      }
      score *= p.scale;
      if (p.softcap > 0) score = capped(score, p.softcap);
      score = lane >= from && lane < to ? score * LOG2E : -INFINITY;
      // A NaN among scores is lost in the maximum, but not in the sum.
      float both = fmaxf(most, ceilf(warp_max(score))), old = exp2f(most - both), w = exp2f(score - both);
      most = both;
      total = total * old + warp_sum(w);
      weights[warp][lane] = w;
      __syncwarp();
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) sum[k].x *= old, sum[k].y *= old;
      const u16* value = values + share * LANES * line + 2 * lane;
#pragma unroll 1
      for (u32 i = from & ~7u; i < to; i += 8) {
        float4 w0 = *(const float4*)&weights[warp][i], w1 = *(const float4*)&weights[warp][i + 4];
        float w[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
#pragma unroll
        for (u32 k = 0; k < PAIRS; k++) {
          if (64 * k + 2 * lane >= dim) break;
          float2 some = make_float2(0, 0);
#pragma unroll
          for (u32 e = 0; e < 8; e++) {
            // What is not seen has no weight, and may be anything: a neighbour stands in.
            u32 row = min(max(i + e, from), to - 1), v = *(const u32*)(value + row * line + 64 * k);
            some.x += w[e] * half_to_f32(v & 0xffff);
            some.y += w[e] * half_to_f32(v >> 16);
          }
          sum[k].x += some.x, sum[k].y += some.y;
        }
      }
    }
    __syncthreads();
    ask(c + p.buffers, buffer);
    if (++buffer == p.buffers) buffer = 0;
  }

  // Adds up what the warps of a head have, each relative to the most of all, for the first of them.
  auto gather = [&]() {
    if (lane == 0) most_of[warp] = most, total_of[warp] = total;
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++)
      if (64 * k + 2 * lane < dim) *(float2*)(sums + warp * dim + 64 * k + 2 * lane) = sum[k];
    __syncthreads();
    if (share) return;
    float all = -INFINITY;
    for (u32 w = g; w < 8; w += taken) all = fmaxf(all, most_of[w]);
    total = 0;
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++) sum[k] = make_float2(0, 0);
#pragma unroll 1
    for (u32 w = g; w < 8; w += taken) {
      float f = most_of[w] == -INFINITY ? 0.0f : exp2f(most_of[w] - all);
      total += f * total_of[w];
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) {
        if (64 * k + 2 * lane >= dim) break;
        float2 x = *(const float2*)(sums + w * dim + 64 * k + 2 * lane);
        sum[k].x += f * x.x, sum[k].y += f * x.y;
      }
    }
    most = all;
  };
  gather();
  float2* stats = (float2*)(p.partial + (u64)p.kv_heads * p.group * p.runs * dim);
  if (runs > 1) {
    if (share == 0 && on) {
      u64 at = (u64)head * p.runs + run;
      if (lane == 0) __stcg(stats + at, make_float2(most, total));
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++)
        if (64 * k + 2 * lane < dim) __stcg((float2*)(p.partial + at * dim + 64 * k + 2 * lane), sum[k]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      // One thread's release is enough for all that the barrier has seen.
      u32 before;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(p.arrived + own) : "memory");
      last = before + 1 == runs;
      if (last) p.arrived[own] = 0;
    }
    __syncthreads();
    if (!last) return;
    most = -INFINITY, total = 0;
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++) sum[k] = make_float2(0, 0);
    if (on) {
      u64 at = (u64)head * p.runs;
      float2 x = lane < runs ? __ldcg(stats + at + lane) : make_float2(-INFINITY, 0);
      most = warp_max(x.x);
      float f = x.x == -INFINITY ? 0.0f : exp2f(x.x - most);
      // The warps of a head take turns; the first has the total.
      total = warp_sum(f * x.y);
      if (share) total = 0;
#pragma unroll 4
      for (u32 i = share; i < runs; i += shares) {
        float w = __shfl_sync(FULL, f, i);
#pragma unroll
        for (u32 k = 0; k < PAIRS; k++) {
          if (64 * k + 2 * lane >= dim) break;
          float2 v = __ldcg((const float2*)(p.partial + (at + i) * dim + 64 * k + 2 * lane));
          sum[k].x += w * v.x, sum[k].y += w * v.y;
        }
      }
    }
    gather();
  }
  if (share || !on) return;
  float f = 1.0f;
  if (p.sinks) {
    float sink = p.sinks[head] * LOG2E, both = fmaxf(most, ceilf(sink));
    f = exp2f(most - both);
    total = total * f + exp2f(sink - both);
  }
  f /= total;
#pragma unroll
  for (u32 k = 0; k < PAIRS; k++)
    if (64 * k + 2 * lane < dim)
      __stcg((float2*)(p.out + head * dim + 64 * k + 2 * lane), make_float2(sum[k].x * f, sum[k].y * f));
}

#define ATTEND_ONE(PAIRS) \
  KERNEL __launch_bounds__(256, 2) attend_one_##PAIRS(const __grid_constant__ AttendOne p) { attend_one<PAIRS>(p); }
ATTEND_ONE(1)
ATTEND_ONE(2)
ATTEND_ONE(4)
