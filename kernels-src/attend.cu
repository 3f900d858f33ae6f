// Attention of one row over its slot's cache, in chunks of 64 absolute positions.
//
// A chunk's scores, maximum, sum and weighted values are computed by one block for all query heads
// that share a key head, so keys and values are read once. Chunks are merged in order. A decode step
// spreads (key head x chunk) over the chip, and the block that finishes a head last merges it; a
// prefill step gives each (row, key head) a block that takes the chunks one after the other. Both do
// the same arithmetic in the same order: a row's bits do not depend on how it was run.
#include "attend.cuh"
#include "cache.cuh"

struct Tile {
  // Queries; scores `[position][query]`; maximum and sum of each query.
  float *q, *scores, *most, *total;
  u16 *keys, *values;
  // Partial sums of values `[group of positions][query][dim]`, where the keys were.
  float* sums;
  u32 groups;
  // The first query head, and the row's own position, counted from the chunk's first.
  u32 head, own;
};

// What a head adds to a score for each position between.
DEV float slope(const Attend& p, u32 head) {
  u32 n = 1u << (31 - __clz(p.heads));
  float power = head < n ? (float)(head + 1) / (float)n : (float)(2 * (head - n) + 1) / (float)(2 * n);
  return exp2f(-p.alibi * power);
}

// Loads positions `from..to` of a chunk.
DEV void load_tile(const Attend& p, const Tile& t, u32 slot, u32 kv, u32 base, u32 from, u32 to) {
  u32 pieces = p.dim / 8, stride = p.dim + 8;
  u64 head = ((u64)slot * (p.kv_heads / p.share) + kv / p.share) * p.context;
  for (u32 i = threadIdx.x; i < (to - from) * pieces; i += blockDim.x) {
    u32 n = from + i / pieces, d = i % pieces * 8;
    u64 row = head + base + n;
    *(uint4*)(t.keys + n * stride + d) = kept8(p.keys, p.key_scales, row, p.dim, d);
    *(uint4*)(t.values + n * stride + d) = kept8(p.values, p.value_scales, row, p.dim, d);
  }
}

// Queries that a thread works on at a time, so that a key is converted once for all of them.
constexpr u32 QUERIES = 4;

// Of the positions `from..to` of the tile: most, total and partial sums of each query.
DEV void chunk(const Attend& p, const Tile& t, u32 from, u32 to) {
  u32 group = p.heads / p.kv_heads, stride = p.dim + 8, line = (group + 3) / 4 * 4;
  u32 blocks = line / QUERIES, quarter = threadIdx.x % 4;
  // Four lanes share a position.
  for (u32 i = threadIdx.x / 4; i < CHUNK * blocks; i += 64) {
    u32 n = i % CHUNK, g0 = i / CHUNK * QUERIES;
    float s[QUERIES] = {0, 0, 0, 0};
    bool in = n >= from && n < to;
    if (in) {
      for (u32 d = quarter * 8; d < p.dim; d += 32) {
        uint4 k = *(const uint4*)(t.keys + n * stride + d);
        float f[8] = {half_to_f32(k.x & 0xffff), half_to_f32(k.x >> 16), half_to_f32(k.y & 0xffff),
                      half_to_f32(k.y >> 16),    half_to_f32(k.z & 0xffff), half_to_f32(k.z >> 16),
                      half_to_f32(k.w & 0xffff), half_to_f32(k.w >> 16)};
#pragma unroll
        for (u32 j = 0; j < QUERIES; j++) {
          if (g0 + j >= group) break;
          const float4* q = (const float4*)(t.q + (g0 + j) * p.dim + d);
          float4 a = q[0], b = q[1];
          s[j] += f[0] * a.x + f[1] * a.y + f[2] * a.z + f[3] * a.w;
          s[j] += f[4] * b.x + f[5] * b.y + f[6] * b.z + f[7] * b.w;
        }
      }
    }
#pragma unroll
    for (u32 j = 0; j < QUERIES; j++) {
      s[j] += __shfl_xor_sync(FULL, s[j], 1);
      s[j] += __shfl_xor_sync(FULL, s[j], 2);
    }
    float mine = quarter == 0 ? s[0] : quarter == 1 ? s[1] : quarter == 2 ? s[2] : s[3];
    mine *= p.scale;
    if (p.softcap > 0) mine = p.softcap * tanhf(mine / p.softcap);
    if (p.alibi > 0) mine -= slope(p, t.head + g0 + quarter) * (float)(int)(t.own - n);
    t.scores[n * line + g0 + quarter] = in ? mine : -INFINITY;
  }
  __syncthreads();
  u32 lane = threadIdx.x % 32;
  for (u32 g = threadIdx.x / 32; g < group; g += blockDim.x / 32) {
    float a = t.scores[lane * line + g], b = t.scores[(lane + 32) * line + g];
    float most = warp_max(fmaxf(a, b));
    // A NaN among scores is lost in the maximum, but not here.
    a = expf(a - most), b = expf(b - most);
    t.scores[lane * line + g] = a;
    t.scores[(lane + 32) * line + g] = b;
    float total = warp_sum(a + b);
    if (lane == 0) t.most[g] = most, t.total[g] = total;
  }
  __syncthreads();
  u32 pairs = p.dim / 2, per = CHUNK / t.groups;
  for (u32 i = threadIdx.x; i < pairs * t.groups * blocks; i += blockDim.x) {
    u32 d = i % pairs * 2, some = i / pairs % t.groups, g0 = i / pairs / t.groups * QUERIES;
    float sum[QUERIES][2] = {};
    u32 begin = max(from, some * per), end = min(to, some * per + per);
#pragma unroll 4
    for (u32 n = begin; n < end; n++) {
      u32 v = *(const u32*)(t.values + n * stride + d);
      float a = half_to_f32(v & 0xffff), b = half_to_f32(v >> 16);
      float4 w = *(const float4*)(t.scores + n * line + g0);
      sum[0][0] += w.x * a, sum[0][1] += w.x * b;
      sum[1][0] += w.y * a, sum[1][1] += w.y * b;
      sum[2][0] += w.z * a, sum[2][1] += w.z * b;
      sum[3][0] += w.w * a, sum[3][1] += w.w * b;
    }
#pragma unroll
    for (u32 j = 0; j < QUERIES; j++)
      if (g0 + j < group)
        *(float2*)(t.sums + (some * group + g0 + j) * p.dim + d) = make_float2(sum[j][0], sum[j][1]);
  }
  __syncthreads();
}
// Element `e` of the weighted values, `[query][dim]`.
DEV float sum_of(const Attend& p, const Tile& t, u32 e) {
  float sum = 0;
  for (u32 i = 0; i < t.groups; i++) sum += t.sums[i * (p.heads / p.kv_heads) * p.dim + e];
  return sum;
}

// What has been merged so far, of one element of the output.
struct Merged {
  float most, total, sum;
};
DEV void merge(Merged& m, float most, float total, float sum) {
  float both = fmaxf(m.most, most), old = expf(m.most - both), fresh = expf(most - both);
  m.total = m.total * old + total * fresh;
  m.sum = m.sum * old + sum * fresh;
  m.most = both;
}

constexpr u32 OWN = 8;

KERNEL __launch_bounds__(256) attend(const __grid_constant__ Attend p) {
  extern __shared__ __align__(16) u8 shared[];
  __shared__ bool last;
  u32 group = p.heads / p.kv_heads, row = blockIdx.y;
  Tile t;
  u32 line = (group + 3) / 4 * 4;
  t.q = (float*)shared;
  t.scores = t.q + group * p.dim;
  t.most = t.scores + line * CHUNK;
  t.total = t.most + line;
  t.keys = (u16*)(t.total + line);
  t.values = t.keys + CHUNK * (p.dim + 8);
  t.sums = (float*)t.keys;
  t.groups = 8;
  while (t.groups > 1 && t.groups * group * p.dim * 4 > CHUNK * (p.dim + 8) * 2) t.groups /= 2;
  pdl_launch_next();
  // Positions and slots do not change within a step.
  u32 position = cg_u32(p.positions + row), slot = cg_u32(p.slots + row);
  u32 first = p.window && position + 1 > p.window ? position + 1 - p.window : 0;
  u32 low = first / CHUNK, high = position / CHUNK + 1;

  auto load_q = [&](u32 kv) {
    for (u32 i = threadIdx.x; i < group * p.dim; i += blockDim.x)
      t.q[i] = cg_f32(p.q + (u64)row * p.q_stride + kv * group * p.dim + i);
  };
  auto bounds = [&](u32 c, u32& from, u32& to) {
    from = first > c * CHUNK ? first - c * CHUNK : 0;
    to = min(CHUNK, position + 1 - c * CHUNK);
  };

  if (!p.split) {
    u32 kv = blockIdx.x, from, to;
    pdl_wait();
    load_q(kv);
    Merged mine[OWN];
#pragma unroll
    for (u32 i = 0; i < OWN; i++) mine[i] = {-INFINITY, 0, 0};
    for (u32 c = low; c < high; c++) {
      bounds(c, from, to);
      load_tile(p, t, slot, kv, c * CHUNK, from, to);
      t.head = kv * group, t.own = position - c * CHUNK;
      __syncthreads();
      chunk(p, t, from, to);
#pragma unroll
      for (u32 i = 0; i < OWN; i++) {
        u32 e = i * 256 + threadIdx.x;
        if (e < group * p.dim) merge(mine[i], t.most[e / p.dim], t.total[e / p.dim], sum_of(p, t, e));
      }
      __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
      u32 e = i * 256 + threadIdx.x;
      if (e >= group * p.dim) break;
      if (p.sinks) merge(mine[i], p.sinks[kv * group + e / p.dim], 1.0f, 0.0f);
      __stcg(p.out + (u64)row * p.out_stride + kv * group * p.dim + e, mine[i].sum / mine[i].total);
    }
    return;
  }

  u32 chunks = high - low, items = chunks * p.kv_heads;
  bool waited = false;
  for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
    u32 kv = item % p.kv_heads, c = low + item / p.kv_heads, from, to;
    bounds(c, from, to);
    // All but the newest position were written in earlier steps.
    u32 old = min(to, position - c * CHUNK);
    load_tile(p, t, slot, kv, c * CHUNK, from, old);
    if (!waited) pdl_wait();
    waited = true;
    load_tile(p, t, slot, kv, c * CHUNK, old, to);
    load_q(kv);
    t.head = kv * group, t.own = position - c * CHUNK;
    __syncthreads();
    chunk(p, t, from, to);
    u32 width = p.dim + 2;
    for (u32 i = threadIdx.x; i < group * p.dim; i += blockDim.x) {
      u32 g = i / p.dim, d = i % p.dim;
      float* to_partial = p.partial + ((u64)(kv * group + g) * p.chunks + (c - low)) * width;
      __stcg(to_partial + d, sum_of(p, t, i));
      if (d == 0) {
        __stcg(to_partial + p.dim, t.most[g]);
        __stcg(to_partial + p.dim + 1, t.total[g]);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      // One thread's release is enough for all that the barrier has seen.
      u32 before;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(p.arrived + kv) : "memory");
      last = before + 1 == chunks;
      if (last) p.arrived[kv] = 0;
    }
    __syncthreads();
    if (!last) continue;
    for (u32 i = threadIdx.x; i < group * p.dim; i += blockDim.x) {
      u32 g = i / p.dim, d = i % p.dim;
      const float* from_partial = p.partial + (u64)(kv * group + g) * p.chunks * width;
      Merged m = {-INFINITY, 0, 0};
#pragma unroll 8
      for (u32 k = 0; k < chunks; k++) {
        const float* f = from_partial + k * width;
        merge(m, cg_f32(f + p.dim), cg_f32(f + p.dim + 1), cg_f32(f + d));
      }
      if (p.sinks) merge(m, p.sinks[kv * group + g], 1.0f, 0.0f);
      __stcg(p.out + kv * group * p.dim + i, m.sum / m.total);
    }
    __syncthreads();
  }
  if (!waited) pdl_wait();
}
