// Picks the tokens of a step, and advances the state that the next step starts from.
//
// `scan` spreads a row of logits over the chip: is every logit finite, which is the highest after
// penalties, which wins the draw if no filter is asked for. `pick` makes the token of that. Filters
// act in the order of the CPU's (graph/op/sample.rs): each keeps a prefix of the order (higher logit,
// then lower id), found by radix selection, where an element counts 1 for top-k and its probability
// in fixed point for top-p: sums of integers, the same in every order.
//
// A draw is Gumbel-max: the survivor with the highest `logit / T - log E`, E exponential from a hash
// of seed, draw and token. It is the distribution that the CPU draws from, by other numbers.
#include "common.cuh"

// What is set when the sampler changes, and the number of the draw.
struct Sampler {
  float temperature, top_p, min_p, penalty;
  u32 top_k, last_n;
  u64 seed, draws;
};

struct Best {
  // The order of a logit above the complement of its id: the highest wins.
  u64 key;
  float score;
  u32 id, bad, unused;
};

struct Sample {
  const float* logits;
  // Logits after penalties, and each block's best.
  float* adjusted;
  Best* best;
  u32 *tokens, *positions, *slots, *outs, *history, *sampled;
  Sampler* sampler;
  // The tokens, or all ones where a logit was not finite; in the host's memory.
  u32* result;
  // How many rows are done; zero between launches.
  u32* arrived;
  u32 stride, vocabulary, rows, blocks, context, advance;
};
static_assert(sizeof(Sample) == 120 && sizeof(Best) == 24 && sizeof(Sampler) == 40, "src/cuda/abi.rs mirrors it");

// Higher floats, higher numbers; never called with NaN.
DEV u32 order(float f) {
  u32 u = __float_as_uint(f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
DEV u64 mix(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
DEV float gumbel_score(float logit, float inverse, u64 stream, u32 id) {
  u32 bits = (u32)(mix(stream ^ id) >> 32);
  // 1 - u, exact where it matters: near 0, where the winners are.
  float rest = ((float)bits + 0.5f) * 2.3283064e-10f;
  float e = rest < 0.9999999f ? -log1pf(-rest) : 16.0f;
  return logit * inverse - logf(e);
}
DEV u64 max64(u64 a, u64 b) { return a > b ? a : b; }

// Block-wide best of key and of score; the result is for thread 0. Ties of score go to the lower id.
DEV void reduce(u64& key, float& score, u32& id, u32& bad, u8* shared) {
  u64* keys = (u64*)shared;
  float* scores = (float*)(keys + 32);
  u32 *ids = (u32*)(scores + 32), *bads = ids + 32;
  auto step = [&](u64 k, float s, u32 i, u32 b) {
    key = max64(key, k);
    bad |= b;
    if (s > score || (s == score && i < id)) score = s, id = i;
  };
#pragma unroll
  for (int o = 16; o; o >>= 1)
    step(__shfl_xor_sync(FULL, key, o), __shfl_xor_sync(FULL, score, o), __shfl_xor_sync(FULL, id, o),
         __shfl_xor_sync(FULL, bad, o));
  u32 warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) keys[warp] = key, scores[warp] = score, ids[warp] = id, bads[warp] = bad;
  __syncthreads();
  if (threadIdx.x == 0)
    for (u32 w = 1; w < blockDim.x / 32; w++) step(keys[w], scores[w], ids[w], bads[w]);
  __syncthreads();
}

DEV bool filters(const Sampler& s, u32 vocabulary) {
  return s.temperature > 0 &&
         ((s.top_k > 0 && s.top_k < vocabulary) || s.top_p < 1.0f || s.min_p > 0.0f);
}

// The rows of a step on their way from the host, where its lists stand one after the other.
struct Given {
  const u32* from;
  u32 *tokens, *positions, *slots, *outs;
  // Tokens by slot and position; null where nothing is sampled.
  u32* history;
  u32 rows, wanted, context, unused;
};
static_assert(sizeof(Given) == 64, "src/cuda/abi.rs mirrors it");

// Takes them, and records tokens. Positions are read by kernels that do not wait for this one.
KERNEL take(const __grid_constant__ Given p) {
  pdl_wait();
  const volatile u32* from = p.from;
  for (u32 r = threadIdx.x; r < p.rows; r += blockDim.x) {
    u32 token = from[r], position = from[p.rows + r], slot = from[2 * p.rows + r];
    p.tokens[r] = token, p.positions[r] = position, p.slots[r] = slot;
    if (p.history) p.history[(u64)slot * p.context + position] = token;
  }
  for (u32 r = threadIdx.x; r < p.wanted; r += blockDim.x) p.outs[r] = from[3 * p.rows + r];
  __threadfence();
}

KERNEL __launch_bounds__(256, HOPPER ? 8 : 6) scan(const __grid_constant__ Sample p) {
  extern __shared__ u32 recent[];
  __shared__ __align__(8) u8 shared[32 * 20];
  u32 per = (p.vocabulary + p.blocks - 1) / p.blocks, out = blockIdx.y;
  u32 from = blockIdx.x * per, to = min(from + per, p.vocabulary);
  pdl_launch_next();
  if (blockIdx.x >= p.blocks) {
    pdl_wait();
    return;
  }
  pdl_wait();
  // A thread's logits, several at a time: sent for before it is known what becomes of them.
  constexpr u32 AT_ONCE = 4;
  float held[AT_ONCE];
  const float* logits = p.logits + (u64)out * p.stride;
  auto ask = [&](u32 first) {
#pragma unroll
    for (u32 k = 0; k < AT_ONCE; k++) held[k] = first + k * 256 < to ? cg_f32(logits + first + k * 256) : 0.0f;
  };
  ask(from + threadIdx.x);
  Sampler s = *p.sampler;
  bool penal = s.penalty != 1.0f && s.last_n > 0;
  if (penal) {
    u32 row = cg_u32(p.outs + out), position = cg_u32(p.positions + row);
    for (u32 i = threadIdx.x; i < (per + 31) / 32; i += 256) recent[i] = 0;
    __syncthreads();
    u32 n = min(s.last_n, position + 1);
    const u32* history = p.history + (u64)cg_u32(p.slots + row) * p.context + (position + 1 - n);
    for (u32 i = threadIdx.x; i < n; i += 256) {
      u32 token = cg_u32(history + i);
      if (token >= from && token < to) atomicOr(recent + (token - from) / 32, 1u << ((token - from) % 32));
    }
    __syncthreads();
  }
  bool draws = s.temperature > 0 && !filters(s, p.vocabulary);
  bool keep = filters(s, p.vocabulary);
  float inverse = draws ? 1.0f / s.temperature : 0.0f;
  u64 stream = mix(mix(s.seed) ^ (s.draws + out));
  u64 key = 0;
  float score = -INFINITY;
  u32 id = 0xffffffffu, bad = 0;
  auto see = [&](u32 i, float v) {
    if (!isfinite(v)) bad = 1;
    if (penal && (recent[(i - from) / 32] >> ((i - from) % 32) & 1)) {
      v = v > 0 ? v / s.penalty : v * s.penalty;
      v = fminf(fmaxf(v, -3.4028235e38f), 3.4028235e38f);
    }
    v += 0.0f;
    key = max64(key, (u64)order(v) << 32 | (u32)~i);
    if (keep) __stcg(p.adjusted + (u64)out * p.vocabulary + i, v);
    if (draws) {
      float g = gumbel_score(v, inverse, stream, i);
      if (g > score || (g == score && i < id)) score = g, id = i;
    }
  };
#pragma unroll 1
  for (u32 first = from + threadIdx.x; first < to; first += AT_ONCE * 256) {
    if (first >= from + 256) ask(first);
#pragma unroll
    for (u32 k = 0; k < AT_ONCE; k++)
      if (first + k * 256 < to) see(first + k * 256, held[k]);
  }
  reduce(key, score, id, bad, shared);
  if (threadIdx.x == 0) {
    Best* b = p.best + (u64)out * p.blocks + blockIdx.x;
    __stcg(&b->key, key);
    __stcg(&b->score, score);
    __stcg(&b->id, id);
    __stcg(&b->bad, bad);
  }
}

constexpr u32 BINS = 2048;

// The last element of a prefix of the order: its logit's order, and its id.
struct Cut {
  u32 logit, id;
};
DEV bool keeps(const Cut& c, u32 logit, u32 id) { return logit > c.logit || (logit == c.logit && id <= c.id); }

struct Selection {
  u64 bins[BINS];
  u64 above, total;
  u32 found, ties;
};

// The first element, from the top of what `cut` keeps, at which the sum of weights reaches `target`
// (of `share` of all weights, if that is not 0). All threads call it and get the same.
template <class W>
__device__ Cut select(const float* v, u32 n, Cut cut, u64 target, double share, W weight, Selection* s) {
  u32 prefix = 0, mask = 0;
  u64 above = 0;
  constexpr u32 SHIFT[3] = {21, 10, 0};
#pragma unroll 1
  for (u32 pass = 0; pass < 3; pass++) {
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) s->bins[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      float x = cg_f32(v + i);
      u32 o = order(x);
      if ((o & mask) == prefix && keeps(cut, o, i))
        atomicAdd(&s->bins[(o >> SHIFT[pass]) & (pass == 0 ? 2047 : pass == 1 ? 2047 : 1023)], weight(x));
    }
    __syncthreads();
    // Two bins a thread, summed from the top: a scan over 1,024 threads in shared memory.
    u32 t = threadIdx.x, top = BINS - 1 - 2 * t;
    u64 pair = t < BINS / 2 ? s->bins[top] + s->bins[top - 1] : 0, sum = pair;
    __shared__ u64 warps[32];
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      u64 other = __shfl_up_sync(FULL, sum, o);
      if (t % 32 >= o) sum += other;
    }
    if (t % 32 == 31) warps[t / 32] = sum;
    __syncthreads();
    u64 before = 0, all = 0;
    for (u32 w = 0; w < 32; w++) {
      if (w < t / 32) before += warps[w];
      all += warps[w];
    }
    if (pass == 0 && share > 0) {
      target = (u64)ceil(share * (double)all);
      if (target == 0) target = 1;
    }
    if (t == 0) s->found = 0xffffffffu;
    __syncthreads();
    u64 start = above + before + sum - pair, middle = start + s->bins[top], end = start + pair;
    if (start < target && middle >= target) s->found = top, s->above = start;
    else if (middle < target && end >= target) s->found = top - 1, s->above = middle;
    __syncthreads();
    // Rounding may leave the target unreached: nothing is cut.
    if (s->found == 0xffffffffu) return cut;
    prefix |= s->found << SHIFT[pass];
    mask |= (pass == 2 ? 1023u : 2047u) << SHIFT[pass];
    above = s->above;
    __syncthreads();
  }
  // Among equals, the lowest ids: find the id at which enough of them are in.
  u32 o = prefix;
  u64 one = weight(__uint_as_float(o & 0x80000000u ? o & 0x7fffffffu : ~o));
  u64 want = one ? (target - above + one - 1) / one : 1;
  auto equals = [&](u32 upto) {
    u32 count = 0;
    for (u32 i = threadIdx.x; i < upto; i += blockDim.x) count += order(cg_f32(v + i)) == o && keeps(cut, o, i);
    if (threadIdx.x == 0) s->ties = 0;
    __syncthreads();
    if (count) atomicAdd(&s->ties, count);
    __syncthreads();
    u32 ties = s->ties;
    __syncthreads();
    return ties;
  };
  if (want >= equals(n)) return Cut{o, cut.logit == o ? cut.id : 0xffffffffu};
  u32 low = 0, high = n - 1;
  while (low < high) {
    u32 mid = low + (high - low) / 2;
    if (equals(mid + 1) >= want) high = mid;
    else low = mid + 1;
  }
  return Cut{o, low};
}

DEV u64 fixed_point(float below) { return (u64)(expf(below) * 1099511627776.0f); }

KERNEL __launch_bounds__(1024) pick(const __grid_constant__ Sample p) {
  __shared__ __align__(8) u8 shared[32 * 20];
  __shared__ Selection selection;
  pdl_launch_next();
  if (blockIdx.x) {
    pdl_wait();
    return;
  }
  pdl_wait();
  // A row a block.
  Sampler s = *p.sampler;
  u32 out = blockIdx.y;
  u64 key = 0;
  float score = -INFINITY;
  u32 id = 0xffffffffu, bad = 0;
  for (u32 i = threadIdx.x; i < p.blocks; i += 1024) {
    const Best* b = p.best + (u64)out * p.blocks + i;
    key = max64(key, __ldcg(&b->key));
    bad |= __ldcg(&b->bad);
    float other = __ldcg(&b->score);
    u32 other_id = __ldcg(&b->id);
    if (other > score || (other == score && other_id < id)) score = other, id = other_id;
  }
  reduce(key, score, id, bad, shared);
  __shared__ u64 best_key;
  __shared__ u32 any_bad;
  if (threadIdx.x == 0) best_key = key, any_bad = bad;
  __syncthreads();
  u32 token = s.temperature > 0 ? id : ~(u32)best_key;
  u32 top = (u32)(best_key >> 32);
  u32 likeliest = ~(u32)best_key;
  if (filters(s, p.vocabulary) && !any_bad) {
    const float* v = p.adjusted + (u64)out * p.vocabulary;
    u32 n = p.vocabulary;
    float most = __uint_as_float(top & 0x80000000u ? top & 0x7fffffffu : ~top);
    Cut cut = {0, 0xffffffffu};
    if (s.top_k > 0 && s.top_k < n)
      cut = select(v, n, cut, s.top_k, 0.0, [](float) -> u64 { return 1; }, &selection);
    if (s.top_p < 1.0f)
      cut = select(v, n, cut, 0, (double)s.top_p, [most](float x) { return fixed_point(x - most); },
                   &selection);
    double distance = s.min_p > 0 ? log((double)s.min_p) : -INFINITY;
    u64 stream = mix(mix(s.seed) ^ (s.draws + out));
    float inverse = 1.0f / s.temperature;
    key = 0, score = -INFINITY, id = likeliest, bad = 0;
    for (u32 i = threadIdx.x; i < n; i += 1024) {
      float x = cg_f32(v + i);
      if (!keeps(cut, order(x), i) || (double)x - (double)most < distance) continue;
      float g = gumbel_score(x, inverse, stream, i);
      if (g > score || (g == score && i < id)) score = g, id = i;
    }
    reduce(key, score, id, bad, shared);
    token = id;
  }
  if (threadIdx.x != 0) return;
  token = any_bad ? 0xffffffffu : token;
  __stcg(p.sampled + out, token);
  *(volatile u32*)(p.result + out) = token;
  if (p.rows > 1) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(p.arrived) : "memory");
    if (before + 1 != p.rows) return;
    *p.arrived = 0;
    token = cg_u32(p.sampled + p.rows - 1);
  }
  p.sampler->draws = s.draws + p.rows;
  if (!p.advance || token == 0xffffffffu) return;
  // The next step runs the last token at the next position of its slot.
  u32 row = p.outs[p.rows - 1], position = p.positions[row] + 1, slot = p.slots[row];
  p.tokens[0] = token;
  p.positions[0] = position;
  p.slots[0] = slot;
  p.outs[0] = 0;
  if (position < p.context) p.history[(u64)slot * p.context + position] = token;
}
