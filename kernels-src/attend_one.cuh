// Attention of the only row of a step over its slot's cache.
//
// A block has up to eight query heads that share a key head, and a run of chunks of positions; a warp
// has 16 positions of each chunk, for all heads at once: tensor cores take keys as the left side and
// queries as the right one, values (transposed) as the left side and weights as the right one. Queries
// and weights are the sum of two halves each, so that nothing but keys and values is rounded. Keys and
// values of earlier steps are asked for before the kernel waits for its predecessor. What becomes of
// the row's own query, key and value heads (bias, norm, rotation, the write to the cache) is done
// here, from the product as it is. The block that finishes its heads last adds up their runs.
//
// Weights are powers of two relative to a maximum that is rounded up to a whole power, so that what
// sums are scaled by when they are added up is exact.
//
// A warp alone on its scheduler waits for each instruction: what counts is how few there are from the
// wait to the end. Heads narrower than a kernel is made for are filled up with zeros.
#pragma once
#include "fresh.cuh"
#include "halves.cuh"
#include "heads.cuh"

// Query heads of a block, positions of a warp, runs of a head.
constexpr u32 QUERIES = 8, TILE = 16, MOST_RUNS = 32;
// Positions that are worth a block of their own.
constexpr u32 RUN = 384;

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
  // Query heads of a key head; parts of so many at most that blocks take.
  u32 kv_heads, group, taken, parts;
  u32 dim, context, window, runs;
  // Positions of a chunk, chunks on their way.
  u32 chunk, buffers;
  float scale, softcap;
};
static_assert(sizeof(AttendOne) == 256, "src/cuda/abi.rs mirrors it");

// What a block has beside its tiles.
template <u32 PAIRS>
struct __align__(16) AttendShared {
  // Of a tile a position's key and value; floats of a head's sums, of each warp and from a head to the next.
  static constexpr u32 LINE = 128 * PAIRS + 8, WARP_SUMS = 64 * PAIRS + 4, HEAD_SUMS = 8 * WARP_SUMS + 4;
  u16 queries[2][QUERIES][64 * PAIRS + 8], fresh[2][64 * PAIRS];
  float most_of[QUERIES][8], total_of[QUERIES][8];
  float2 stats_of[QUERIES][MOST_RUNS];
  float back[QUERIES];
  u32 last;
};

// The threads of the eight warps; others may be in the block.
DEV void together() { asm volatile("bar.sync 3, 256;" ::: "memory"); }

// What a block sees of the cache.
struct Seen {
  u64 cache;
  // Which heads, and which of their runs; positions from the first, chunks from `low`.
  u32 own, run, kv, first, low, n, runs, begin, end;
  Seen() = default;
  DEV Seen(const AttendOne& p, u32 position, u32 slot) {
    u32 all = p.kv_heads * p.parts, chunk = p.chunk;
    own = blockIdx.x % all, run = blockIdx.x / all, kv = own / p.parts;
    first = p.window && position + 1 > p.window ? position + 1 - p.window : 0;
    low = first / chunk, n = position / chunk + 1 - low, runs = min(p.runs, (n * chunk + RUN - 1) / RUN);
    begin = low + n * run / runs, end = run < runs ? low + n * (run + 1) / runs : begin;
    cache = ((u64)slot * p.kv_heads + kv) * p.context * p.dim;
  }
  // Chunks that there is room for at a time.
  DEV u32 chunks(const AttendOne& p) const { return min(p.buffers, end - begin); }
  // Asks for what earlier steps wrote of a chunk. Values of a warp's positions that are not seen are zeros, and so is what
  // heads are filled up with; unseen keys may be anything.
  template <u32 PAIRS, u32 THREADS>
  DEV void ask(const AttendOne& p, u32 position, u32 c, u16* into, u32 thread) const {
    constexpr u32 BYTES = 2 * AttendShared<PAIRS>::LINE, PIECES = 8 * PAIRS, ROWS = THREADS / PIECES;
    if (c < end) {
      u32 dim = p.dim, row = thread / PIECES, piece = thread % PIECES * 8;
      u32 base = c * p.chunk, ends = min(base + p.chunk, (position | TILE - 1) + 1);
      u32 keys = shared_address(into) + 2 * piece - base * BYTES, values = keys + 128 * PAIRS;
      auto clear = [&](u32 to, u32 at, u32 ends) {
#pragma unroll 1
        for (at += row; at < ends; at += ROWS)
          asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(to + at * BYTES), "r"(0) : "memory");
      };
      if (piece >= dim) {
        clear(keys, base, ends), clear(values, base, ends);
      } else {
        u32 at = max(base, first) + row, until = min(ends, position), to = keys + at * BYTES;
        u64 from = cache + (u64)at * dim + piece;
        const u16 *key = p.keys + from, *value = p.values + from;
#pragma unroll 4
        for (; at < until; at += ROWS, key += ROWS * dim, value += ROWS * dim, to += ROWS * BYTES) {
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(key) : "memory");
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + 128 * PAIRS), "l"(value) : "memory");
        }
        clear(values, max(base, first & ~(TILE - 1)), first);
        clear(values, max(base, position + 1), ends);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

// Where tiles are: of a launch alone one after the other.
struct Alone {
  static constexpr bool CHAIN = false;
  u16* first;
  u32 each;
  DEV u16* of(u32 buffer) const { return first + buffer * each; }
  DEV void wait(u32) const {}
};

// Heads of up to 64 * PAIRS elements. In a chain of launches that are one kernel nothing is waited for
// but numbers, and the first chunks have been asked for.
template <u32 PAIRS, class Tiles>
DEV void attend_one(const AttendOne& p, Fresh f, u32 position, const Seen& seen, AttendShared<PAIRS>& own_shared,
                    const Tiles& tiles, u32 thread) {
  constexpr bool CHAIN = Tiles::CHAIN;
  constexpr u32 WIDE = 64 * PAIRS, QUERY = WIDE + 8, TILES = WIDE / 16, PIECES = 8 * PAIRS;
  constexpr u32 LINE = AttendShared<PAIRS>::LINE, APART = AttendShared<PAIRS>::WARP_SUMS, HEAD = AttendShared<PAIRS>::HEAD_SUMS;
  auto &queries = own_shared.queries;
  auto &fresh = own_shared.fresh;
  auto &most_of = own_shared.most_of, &total_of = own_shared.total_of;
  auto &back = own_shared.back;
  auto &stats_of = own_shared.stats_of;
  u32 lane = thread % 32, warp = thread / 32, dim = p.dim, chunk = p.chunk, buffers = p.buffers;
  u32 own = seen.own, run = seen.run, kv = seen.kv, first = seen.first, low = seen.low, n = seen.n, runs = seen.runs;
  u32 begin = seen.begin, end = seen.end;
  u64 cache = seen.cache;
  u32 part = own % p.parts * p.taken, heads = min(p.taken, p.group - part), head0 = kv * p.group + part;
  // In the place of tiles, when all have read them.
  float* sums = (float*)tiles.of(0);

  if (run >= runs) {
    if (!CHAIN) pdl_launch_next(), pdl_wait();
    return;
  }
  if (!CHAIN) {
#pragma unroll 1
    for (u32 b = 0; b < buffers; b++) seen.ask<PAIRS, 256>(p, position, begin + b, tiles.of(b), thread);
  }
  // Whoever has the newest chunk makes key and value.
  bool newest = end == low + n;
  u32 g = lane / 4, t = lane % 4;
  // Where this warp's keys and values lie in a tile, and queries.
  u32 key_at = ((warp * TILE + lane % 16) * LINE + lane / 16 * 8) * 2;
  u32 value_at = ((warp * TILE + lane % 8 + lane / 16 * 8) * LINE + lane / 8 % 2 * 8 + WIDE) * 2;
  u32 query = shared_address(&queries[0][lane % 8][lane / 8 * 8]);
  // The element that this thread puts together.
  u32 h = (u32)(((float)thread + 0.5f) * (1.0f / (float)dim)), e = thread - h * dim;
  // One head a warp, a pair of elements a lane: what becomes of it is looked up before the wait.
  u32 jobs = heads + (newest ? 2 : 0);
#pragma unroll 1
  for (u32 i = warp; i < jobs || i == warp; i += 8) {
    bool is_query = i < heads, in = i < jobs;
    const Heads& made = is_query ? p.q : i == heads ? p.k : p.v;
    u32 which = (is_query ? head0 + i : kv) * dim, pairs = made.turn / 2;
    u16* stored = (i == heads ? p.keys : p.values) + cache + (u64)position * dim;
    u16* to = is_query ? queries[0][i] : fresh[i - heads & 1];
    const float *raw = made.raw ? made.raw + which : nullptr, *bias = made.bias ? made.bias + which : nullptr;
    float2 x[PAIRS], turns[PAIRS], weights[PAIRS];
    u32 a[PAIRS], b[PAIRS];
    float squares = 0;
    bool on[PAIRS];
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++) {
      u32 j = k * 32 + lane;
      bool apart = made.halves && j < pairs;
      on[k] = in && 2 * j < dim;
      a[k] = apart ? j : 2 * j, b[k] = apart ? j + pairs : 2 * j + 1;
      x[k] = make_float2(0, 0), turns[k] = make_float2(1, 0), weights[k] = make_float2(1, 1);
      if (on[k] && j < pairs) turns[k] = made.turns[(u64)position * pairs + j];
      if (on[k] && made.norm) weights[k] = make_float2(made.norm[a[k]], made.norm[b[k]]);
    }
    if (!CHAIN && i == warp) pdl_launch_next(), pdl_wait();
    bool there;
    do {
      there = true;
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) {
        if (!on[k]) continue;
        if (CHAIN && raw) {
          x[k] = make_float2(fresh_f32(raw + a[k]), fresh_f32(raw + b[k]));
          there &= !f.polls || !(is_nobody(x[k].x) || is_nobody(x[k].y));
        } else if (raw) {
          x[k] = make_float2(cg_f32(raw + a[k]), cg_f32(raw + b[k]));
        } else {
          x[k] = make_float2(half_to_f32(__ldcg(stored + a[k])), half_to_f32(__ldcg(stored + b[k])));
        }
      }
    } while (CHAIN && !__all_sync(FULL, there));
    if (bias) {
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++)
        if (on[k]) x[k].x += bias[a[k]], x[k].y += bias[b[k]];
    }
    if (made.norm) {
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) squares += x[k].x * x[k].x + x[k].y * x[k].y;
      float scale = rsqrtf(warp_sum(squares) / (float)dim + made.eps);
#pragma unroll
      for (u32 k = 0; k < PAIRS; k++) x[k].x *= scale * weights[k].x, x[k].y *= scale * weights[k].y;
    }
    float up = 1.0f, down = p.scale;
    u32 most = 0;
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++) {
      float u = x[k].x, v = x[k].y;
      // What does not turn keeps its bits.
      if (k * 32 + lane < pairs) x[k] = make_float2(u * turns[k].x - v * turns[k].y, u * turns[k].y + v * turns[k].x);
      most = max(most, max(__float_as_uint(x[k].x) & 0x7fffffffu, __float_as_uint(x[k].y) & 0x7fffffffu));
    }
    // Queries that halves do not hold are brought down by a power of two.
    if (is_query && __any_sync(FULL, most > 0x46800000u)) {
      u32 exponent = __reduce_max_sync(FULL, most) >> 23;
      up = power(264 - exponent), down *= power(exponent - 10);
    }
    if (is_query && lane == 0) back[i] = down;
#pragma unroll
    for (u32 k = 0; k < PAIRS; k++) {
      if (!in) continue;
      u32 w = halves(x[k].x * up, x[k].y * up);
      to[a[k]] = w, to[b[k]] = w >> 16;
      if (is_query) {
        w = rest(x[k].x * up, x[k].y * up, w);
        to[QUERIES * QUERY + a[k]] = w, to[QUERIES * QUERY + b[k]] = w >> 16;
      } else if (raw && on[k]) {
        // Several blocks may write the same to the cache.
        stored[a[k]] = w, stored[b[k]] = w >> 16;
      }
    }
  }
  together();

  float sum[TILES][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};
  float factor[2] = {back[2 * t], back[2 * t + 1]};
  if (!(p.softcap > 0)) factor[0] *= LOG2E, factor[1] *= LOG2E;
  u32 buffer = 0;
#pragma unroll 1
  for (u32 c = begin; c < end; c++) {
    if (buffers == 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else asm volatile("cp.async.wait_group 1;" ::: "memory");
    if (c - begin < buffers) tiles.wait(c - begin);
    u16* both = tiles.of(buffer);
    u32 base = c * chunk, into = shared_address(both);
    if (newest && c + 1 == end && thread < 2 * PIECES) {
      u32 piece = thread % PIECES * 8, which = thread / PIECES;
      u16* to = both + which * WIDE + (position - base) * LINE + piece;
      *(uint4*)to = *(const uint4*)(fresh[which] + piece);
    }
    together();
    // This warp's positions: those of rows g and g + 8.
    u32 at = base + warp * TILE;
    if (warp * TILE < chunk && at <= position && at + TILE > first) {
      float c0[4] = {}, c1[4] = {};
#pragma unroll
      for (u32 i = 0; i < TILES; i += 2) {
        u32 a[4], b[4], high[4], low[4];
        four(high, query + i * 32);
        four(a, into + key_at + i * 32);
        four(low, query + i * 32 + QUERIES * QUERY * 2);
        four(b, into + key_at + i * 32 + 32);
        multiply(c0, a, high[0], high[1]);
        multiply(c1, a, low[0], low[1]);
        multiply(c0, b, high[2], high[3]);
        multiply(c1, b, low[2], low[3]);
      }
      bool seen[2] = {at + g - first <= position - first, at + g + 8 - first <= position - first};
#pragma unroll
      for (u32 k = 0; k < 4; k++) {
        c0[k] = (c0[k] + c1[k]) * factor[k % 2];
        if (p.softcap > 0) c0[k] = capped(c0[k], p.softcap) * LOG2E;
        if (!seen[k / 2]) c0[k] = -INFINITY;
      }
      float old[2], m[2] = {fmaxf(c0[0], c0[2]), fmaxf(c0[1], c0[3])};
#pragma unroll
      for (u32 o = 4; o < 32; o *= 2)
#pragma unroll
        for (u32 k = 0; k < 2; k++) m[k] = fmaxf(m[k], __shfl_xor_sync(FULL, m[k], o));
#pragma unroll
      for (u32 k = 0; k < 2; k++) {
        // A NaN among scores is lost in the maximum, but not in the sum.
        float both = fmaxf(most[k], ceilf(m[k]));
        old[k] = exp2_of(most[k] - both), most[k] = both;
        c0[k] = exp2_of(c0[k] - both), c0[k + 2] = exp2_of(c0[k + 2] - both);
        total[k] = total[k] * old[k] + (c0[k] + c0[k + 2]);
      }
      u32 w0 = halves(c0[0], c0[1]), w1 = halves(c0[2], c0[3]);
      u32 low0 = turned(rest(c0[0], c0[1], w0)), low1 = turned(rest(c0[2], c0[3], w1));
      w0 = turned(w0), w1 = turned(w1);
#pragma unroll
      for (u32 i = 0; i < TILES; i++) {
        u32 a[4];
        four_turned(a, into + value_at + i * 32);
#pragma unroll
        for (u32 k = 0; k < 4; k++) sum[i][k] *= old[k % 2];
        multiply(sum[i], a, w0, w1);
        multiply(sum[i], a, low0, low1);
      }
    }
    if (c + 1 == end) break;
    together();
    seen.ask<PAIRS, 256>(p, position, c + buffers, both, thread);
    if (++buffer == buffers) buffer = 0;
  }

  // All warps relative to the most of all.
#pragma unroll
  for (u32 k = 0; k < 2; k++)
    if (g == 0) most_of[2 * t + k][warp] = most[k];
  together();
  auto eight_of = [](const float* from, float* v) {
    *(float4*)v = *(const float4*)from, *(float4*)(v + 4) = *(const float4*)(from + 4);
  };
  auto most_of_all = [&](u32 head) {
    float v[8];
    eight_of(most_of[head], v);
    return fmaxf(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])), fmaxf(fmaxf(v[4], v[5]), fmaxf(v[6], v[7])));
  };
#pragma unroll
  for (u32 k = 0; k < 2; k++) {
    float f = exp2_of(most[k] - most_of_all(2 * t + k));
    total[k] *= f;
#pragma unroll
    for (u32 o = 4; o < 32; o *= 2) total[k] += __shfl_xor_sync(FULL, total[k], o);
    if (g == 0) total_of[2 * t + k][warp] = total[k];
    if (2 * t + k >= heads) continue;
    float* to = sums + (2 * t + k) * HEAD + warp * APART + g;
#pragma unroll
    for (u32 i = 0; i < TILES; i++) to[i * 16] = sum[i][k] * f, to[i * 16 + 8] = sum[i][k + 2] * f;
  }
  together();

  // One element a thread: its sum over warps, then over runs.
  float2* stats = (float2*)(p.partial + (u64)p.kv_heads * p.group * p.runs * dim);
  auto put = [&](u32 h, u32 e, float all, float whole, float v) {
    if (p.sinks) {
      float sink = p.sinks[head0 + h] * LOG2E, both = fmaxf(all, ceilf(sink)), f = exp2_of(all - both);
      whole = whole * f + exp2_of(sink - both);
      v *= f;
    }
    if constexpr (CHAIN) leave(p.out + (head0 + h) * dim + e, v / whole, f.next);
    else __stcg(p.out + (head0 + h) * dim + e, v / whole);
  };
  auto next = [&](u32& h, u32& e) {
    e += 256;
    while (e >= dim) e -= dim, h++;
  };
#pragma unroll 1
  for (u32 i = h, j = e; i < heads; next(i, j)) {
    float v[8], w[8];
    eight_of(total_of[i], w);
#pragma unroll
    for (u32 k = 0; k < 8; k++) v[k] = sums[i * HEAD + k * APART + j];
    auto up = [](const float* v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); };
    if (runs == 1) {
      put(i, j, p.sinks ? most_of_all(i) : 0, up(w), up(v));
    } else {
      u64 at = (u64)(head0 + i) * p.runs + run;
      __stcg(p.partial + at * dim + j, up(v));
      if (j == 0) __stcg(stats + at, make_float2(most_of_all(i), up(w)));
    }
  }
  if (runs == 1) return;
  together();
  if (thread == 0) {
    // One thread's release is enough for all that the barrier has seen.
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(p.arrived + own) : "memory");
    own_shared.last = before + 1 == runs;
    if (own_shared.last) p.arrived[own] = 0;
  }
  together();
  if (!own_shared.last) return;
  if (lane < runs && warp < heads) stats_of[warp][lane] = __ldcg(stats + (u64)(head0 + warp) * p.runs + lane);
  together();
#pragma unroll 1
  for (u32 i = h, j = e; i < heads; next(i, j)) {
    const float* from = p.partial + (u64)(head0 + i) * p.runs * dim + j;
    float all = -INFINITY, whole = 0, v = 0;
#pragma unroll 4
    for (u32 r = 0; r < runs; r++) all = fmaxf(all, stats_of[i][r].x);
#pragma unroll 8
    for (u32 r = 0; r < runs; r++) {
      float2 x = stats_of[i][r];
      float f = exp2_of(x.x - all);
      whole += f * x.y, v += f * __ldcg(from + r * dim);
    }
    put(i, j, all, whole, v);
  }
}
