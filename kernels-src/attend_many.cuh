// Attention of tiles of rows over caches of halves, on tensor cores.
//
// Rows that follow each other in one slot are a *tile*, up to 64 or 8 rows of (row, query head) with one key
// head: a block has a tile, and a warp 16 of its rows. Chunks of 64 positions are taken apart from each other: weights
// relative to the chunk's own maximum, their sum, and the sum of values, which are then added to what
// the chunks before have left, in order. So a row's bits follow from its own positions alone, and a block of
// one warp's rows (a batch) has its warps take a chunk each and adds up what they found.
//
// Queries and weights are sums of two halves, so that nothing but the cache is rounded; a maximum is
// rounded up to a whole power of two, so that what sums are scaled by is exact.
//
// Where the step's rows and their queries come from is for whoever has the tile, `Own`.
#pragma once
#include "attend.cuh"
#include "halves.cuh"

constexpr u32 MANY = 64, M = 16;

// What has been seen of two rows of a lane: the greatest score and this lane's share of the weights.
struct Sums {
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {};
};
// By what sums until now and those of a chunk are scaled when they meet.
struct Scales {
  float old[2], fresh[2];
};
template <u32 ROWS = 2>
DEV Scales meet(Sums& a, const Sums& chunk) {
  Scales s;
#pragma unroll
  for (u32 k = 0; k < ROWS; k++) {
    float both = fmaxf(a.most[k], chunk.most[k]), from = both == -INFINITY ? 0 : both;
    s.old[k] = exp2_of(a.most[k] - from), s.fresh[k] = exp2_of(chunk.most[k] - from);
    a.total[k] = __fmaf_rn(a.total[k], s.old[k], __fmul_rn(chunk.total[k], s.fresh[k]));
    a.most[k] = both;
  }
  return s;
}
template <u32 ROWS = 2>
DEV void add(float* to, const float* from, const Scales& s) {
#pragma unroll
  for (u32 k = 0; k < 2 * ROWS; k++) to[k] = __fmaf_rn(to[k], s.old[k / 2], __fmul_rn(from[k], s.fresh[k / 2]));
}

// Leaves elements `e` and `e + 1` of a row for whoever reads them, as they are or split or both.
DEV void leave_rows(const Attend& p, u32 row, u32 e, float v, float w) {
  if (p.out) __stcg((float2*)(p.out + (u64)row * p.out_stride + e), make_float2(v, w));
  if (p.left.at) leave_split(p.left, row, e, v, w);
}

// Heads of up to 64 * PAIRS elements; narrower ones are filled up with zeros. A tile has MOST rows or less, a block TEAM warps.
template <u32 PAIRS, u32 MOST, u32 TEAM, class Own>
struct Many {
  // Up to 8 rows stand twice in the left side of a product, as what halves hold of them and as the rest: so sums of both are apart,
  // with more rows, too, except of wide heads, whose sums fill the registers.
  static constexpr bool APART = PAIRS <= 2;
  // Rows of a block whose warps have a chunk each, and of a lane those.
  static constexpr u32 NARROW = MOST < M ? MOST : M, LANES = NARROW / 8;
  static constexpr u32 THREADS = 32 * TEAM, WIDE = 64 * PAIRS, LINE = WIDE + 8, QUERY = 2 * WIDE + 8, PIECES = WIDE / 8, TILES = WIDE / 8;
  // Floats that a lane has of a chunk's sums, when warps have a chunk each: behind the queries there are.
  static constexpr u32 EACH = (TILES + 1) * 2 * LANES, PARTS = NARROW * QUERY * 2;
  const Attend& p;
  const Own& own;
  u16 *queries, *tiles;
  float* back;
  u32 kv, row, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Query heads of a key head, and what divides by them: a row of a tile by its head.
  u32 group = p.heads / p.kv_heads, inverse = 65536 / group + 1, position, slot, rows, low, high;
  u64 cache;
  // Of a key head and of the row that may begin a tile.
  DEV Many(const Attend& p, const Own& own, u16* shared, float* back, u32 kv, u32 row)
      : p(p), own(own), queries(shared), back(back), kv(kv), row(row) {
    tiles = shared + max(MOST * QUERY, PARTS / 2 + p.buffers * EACH * 64);
  }
  DEV static void together() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

  DEV u32 row_of(u32 m) const { return m * inverse >> 16; }
  DEV u32 first(u32 at) const { return p.window && at + 1 > p.window ? at + 1 - p.window : 0; }

  // Whether this block's row begins a tile, and which rows are in it.
  DEV bool begins() {
    u32 most = row_of(MOST);
    position = own.position(row), slot = own.slot(row);
    auto goes_on = [&](u32 i) {
      return i < own.rows && i % most != 0 && own.slot(i) == own.slot(i - 1) && own.position(i) == own.position(i - 1) + 1;
    };
    if (goes_on(row)) return false;
    u32 near = ~__ballot_sync(FULL, goes_on(row + 1 + lane)), far = MOST > 32 ? ~__ballot_sync(FULL, goes_on(row + 33 + lane)) : 0;
    cache = ((u64)slot * (p.kv_heads / p.share) + kv / p.share) * p.context * p.dim;
    rows = near ? __ffs(near) : far ? 32 + __ffs(far) : 64;
    low = first(position) / CHUNK, high = (position + rows - 1) / CHUNK + 1;
    return true;
  }

  // Asks for chunk `c`; zeros are for what no row of the tile sees.
  DEV void ask(u32 c, u32 buffer, u32 thread, u32 threads) const {
    u32 into = shared_address(tiles + 2 * buffer * CHUNK * LINE), from = first(position);
    if (c < high) {
#pragma unroll 2
      for (u32 i = thread; i < CHUNK * PIECES; i += threads) {
        u32 n = i / PIECES, at = c * CHUNK + n, piece = i % PIECES * 8;
        u32 bytes = at >= from && at < position + rows && piece < p.dim ? 16 : 0, to = into + 2 * (n * LINE + piece);
        u64 there = cache + (bytes ? (u64)at * p.dim + piece : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(p.keys + there), "r"(bytes) : "memory");
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + 2 * CHUNK * LINE), "l"(p.values + there),
                     "r"(bytes) : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  // By what a query is brought down that halves do not hold, a power of two, if `most` are the bits of its greatest
  // element; what scores are multiplied with goes to `back`.
  DEV float down(u32 m, u32 most, bool writes) const {
    float by = 1.0f, scale = p.scale;
    if (most > 0x46800000u) by = power(264 - (most >> 23)), scale *= power((most >> 23) - 10);
    if (writes) back[m] = scale;
    return by;
  }

  // Weights of the 16 rows from `m` for a chunk, as the left side of a product with its values.
  struct Weights {
    u32 high[CHUNK / 16][4], low[CHUNK / 16][4];
  };
  template <u32 ROWS>
  DEV Sums weights(u32 c, u32 buffer, u32 m, Weights& w) const {
    constexpr bool TWICE = ROWS == 1;
    u32 g = lane / 4, t = lane % 4;
    u32 query = shared_address(queries + (TWICE ? lane % 8 * QUERY + lane / 8 % 2 * WIDE : (m + lane % 16) * QUERY) + lane / 16 * 8);
    u32 key = shared_address(tiles + 2 * buffer * CHUNK * LINE + lane % 8 * LINE + lane / 8 * 8);
    // Eights of positions whose sums of both parts are in registers at once.
    constexpr u32 AT_ONCE = APART && !TWICE ? 4 : CHUNK / 8;
    float s[CHUNK / 8][4] = {};
#pragma unroll
    for (u32 n0 = 0; n0 < CHUNK / 8; n0 += AT_ONCE) {
      float apart[AT_ONCE][4] = {};
#pragma unroll (PAIRS == 4 ? 1 : WIDE / 32)
      for (u32 i = 0; i < WIDE / 32; i++) {
        u32 high[2][4], low[2][4];
        four(high[0], query + i * 64), four(high[1], query + i * 64 + 32);
        if (!TWICE) four(low[0], query + i * 64 + 2 * WIDE), four(low[1], query + i * 64 + 32 + 2 * WIDE);
#pragma unroll
        for (u32 n = n0; n < n0 + AT_ONCE; n++) {
          u32 k[4];
          four(k, key + n * 16 * LINE + i * 64);
          float* rest = APART ? apart[n - n0] : s[n];
          if (!TWICE) multiply(rest, low[0], k[0], k[1]), multiply(rest, low[1], k[2], k[3]);
          multiply(s[n], high[0], k[0], k[1]), multiply(s[n], high[1], k[2], k[3]);
        }
      }
      if constexpr (APART)
#pragma unroll
        for (u32 n = n0; n < n0 + AT_ONCE; n++)
#pragma unroll
          for (u32 j = 0; j < 2 * ROWS; j++) s[n][j] += TWICE ? s[n][2 + j] : apart[n - n0][j];
    }
    Sums found;
#pragma unroll
    for (u32 k = 0; k < ROWS; k++) {
      u32 mine = m + g + 8 * k, r = row_of(mine), at = position + r;
      // What this row sees of the chunk: none if it is not there.
      int begin = (int)first(at) - (int)(c * CHUNK), end = r < rows ? (int)(at - c * CHUNK) : -1;
      float factor = back[mine] * LOG2E, most = -INFINITY, cap = p.softcap * LOG2E;
      if (p.softcap > 0) factor *= __fdividef(2.0f, p.softcap);
#pragma unroll
      for (u32 n = 0; n < CHUNK / 8; n++)
#pragma unroll
        for (u32 j = 0; j < 2; j++) s[n][2 * k + j] *= factor;
      // cap * tanh(score / cap), without a call, for which all registers would make way.
      if (p.softcap > 0) {
#pragma unroll
        for (u32 n = 0; n < CHUNK / 8; n++)
#pragma unroll
          for (u32 j = 0; j < 2; j++) {
            float& v = s[n][2 * k + j];
            v = cap - 2 * cap * __fdividef(1.0f, exp2_of(v) + 1.0f);
          }
      }
#pragma unroll
      for (u32 n = 0; n < CHUNK / 8; n++)
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
          int here = n * 8 + 2 * t + j;
          float& v = s[n][2 * k + j];
          v = here >= begin && here <= end ? v : -INFINITY;
          most = fmaxf(most, v);
        }
      most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
      found.most[k] = most = ceilf(fmaxf(most, __shfl_xor_sync(FULL, most, 2)));
      // A NaN among scores is lost in the maximum, but not here.
      float from = most == -INFINITY ? 0 : most;
#pragma unroll
      for (u32 n = 0; n < CHUNK / 8; n++) {
        float a = exp2_of(s[n][2 * k] - from), b = exp2_of(s[n][2 * k + 1] - from);
        found.total[k] += a + b;
        u32 h = halves(a, b);
        w.high[n / 2][n % 2 * 2 + k] = h;
        (TWICE ? w.high[n / 2][n % 2 * 2 + 1] : w.low[n / 2][n % 2 * 2 + k]) = rest(a, b, h);
      }
    }
    return found;
  }
  // Weights times eight values each from the `i`th eight on.
  static constexpr u32 EIGHTS = 4;
  template <u32 ROWS>
  DEV void times_values(const Weights& w, u32 buffer, u32 i, float (&out)[EIGHTS][4]) const {
    constexpr bool TWICE = ROWS == 1;
    u32 value = shared_address(tiles + (2 * buffer + 1) * CHUNK * LINE + lane % 16 * LINE + lane / 16 * 8) + i * 16;
    float apart[EIGHTS][4];
#pragma unroll
    for (u32 j = 0; j < EIGHTS; j++)
#pragma unroll
      for (u32 k = 0; k < 4; k++) out[j][k] = apart[j][k] = 0;
#pragma unroll
    for (u32 n = 0; n < CHUNK / 16; n++)
#pragma unroll
      for (u32 j = 0; j < EIGHTS; j += 2) {
        u32 v[4];
        four_turned(v, value + n * 32 * LINE + j * 16);
        float (*rest)[4] = APART ? apart : out;
        if (!TWICE) multiply(rest[j], w.low[n], v[0], v[1]), multiply(rest[j + 1], w.low[n], v[2], v[3]);
        multiply(out[j], w.high[n], v[0], v[1]), multiply(out[j + 1], w.high[n], v[2], v[3]);
      }
    if constexpr (APART)
#pragma unroll
      for (u32 j = 0; j < EIGHTS; j++)
#pragma unroll
        for (u32 k = 0; k < 2 * ROWS; k++) out[j][k] += TWICE ? out[j][2 + k] : apart[j][k];
  }

  // Sums of eights `i0` and on of rows from `m`, divided by their weights.
  template <u32 ROWS, u32 COUNT>
  DEV void leave(Sums& all, float (&sum)[COUNT][4], u32 m, u32 i0) const {
    u32 g = lane / 4, t = lane % 4;
    // Of units of a row. Queries have served, if there is more than a warp to a row.
    float eights[4], *parts = (float*)queries;
#pragma unroll
    for (u32 k = 0; k < ROWS; k++) {
      u32 mine = m + g + 8 * k, r = row_of(mine), head = kv * group + mine - r * group;
      float total = all.total[k], scale = 1.0f;
      total += __shfl_xor_sync(FULL, total, 1);
      total += __shfl_xor_sync(FULL, total, 2);
      if (r >= rows) continue;
      if (p.sinks) {
        float sink = p.sinks[head] * LOG2E, both = fmaxf(all.most[k], ceilf(sink));
        scale = exp2_of(all.most[k] - both);
        total = total * scale + exp2_of(sink - both);
      }
      float by = scale / total;
#pragma unroll
      for (u32 i = 0; i < COUNT; i++) {
        u32 e = (i0 + i) * 8 + 2 * t;
        if (e >= p.dim) continue;
        float v = sum[i][2 * k] * by, w = sum[i][2 * k + 1] * by;
        leave_rows(p, row + r, head * p.dim + e, v, w);
        if (!p.left.sums) continue;
        u32 lanes = 0xfu << (lane & 28);
        eights[i % 4] = sum_of_next<4>(v + w, lanes);
        if (i % 4 == 3 && t == 0)
          leave_sums(p.left, row + r, (head * p.dim + e) / 32, eights[0] + eights[1], eights[2] + eights[3]);
        // Other warps have the other parts of the unit.
        if (COUNT < 4 && i == COUNT - 1 && t == 0) parts[mine * TEAM + warp] = COUNT == 2 ? eights[0] + eights[1] : eights[0];
      }
    }
    if (COUNT > 2 || !p.left.sums) return;
    together();
    constexpr u32 UNITS = WIDE / 32, SHARED_BY = TEAM / UNITS;
    u32 mine = threadIdx.x / UNITS, unit = threadIdx.x % UNITS, r = row_of(mine), head = kv * group + mine - r * group;
    if (mine >= NARROW || r >= rows || unit * 32 >= p.dim) return;
    const float* of = parts + mine * TEAM + unit * SHARED_BY;
    leave_sums(p.left, row + r, head * p.dim / 32 + unit, SHARED_BY == 2 ? of[0] : of[0] + of[1], SHARED_BY == 2 ? of[1] : of[2] + of[3]);
  }

  // A warp has 16 rows, and all of them go through the chunks.
  DEV void run_wide() const {
    static_assert(MOST == TEAM * M, "rows for each warp");
#pragma unroll 1
    for (u32 b = 0; b < p.buffers; b++) ask(low + b, b, threadIdx.x, THREADS);
    own.make(*this, MOST);
    u32 m = warp * M, from = position + row_of(m), to = min(position + row_of(m + M - 1), position + rows - 1);
    Sums all;
    float sum[TILES][4] = {};
    u32 buffer = 0;
#pragma unroll 1
    for (u32 c = low; c < high; c++) {
      if (p.buffers == 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
      else if (p.buffers == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
      else asm volatile("cp.async.wait_group 3;" ::: "memory");
      together();
      if (from <= to && c * CHUNK <= to && (c + 1) * CHUNK > first(from)) {
        Weights w;
        Scales s = meet(all, weights<2>(c, buffer, m, w));
#pragma unroll
        for (u32 i = 0; i < TILES; i += EIGHTS) {
          float part[EIGHTS][4];
          times_values<2>(w, buffer, i, part);
#pragma unroll
          for (u32 j = 0; j < EIGHTS; j++) add(sum[i + j], part[j], s);
        }
      }
      together();
      ask(c + p.buffers, buffer, threadIdx.x, THREADS);
      if (++buffer == p.buffers) buffer = 0;
    }
    leave<2>(all, sum, m, 0);
  }

  // So few rows that each warp has a chunk, and then its share of the sums of all of them.
  DEV void run_narrow() const {
    constexpr u32 ROWS = LANES;
    constexpr u32 MINE = TILES / TEAM, KEPT = 2 * ROWS;
    u32 buffers = min(p.buffers, TEAM);
    float* parts = (float*)(queries + PARTS / 2) + lane;
#pragma unroll 1
    for (u32 b = 0; b < buffers; b++) ask(low + b, b, threadIdx.x, THREADS);
    own.make(*this, NARROW);
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    together();
    Sums all;
    float sum[MINE][4] = {};
#pragma unroll 1
    for (u32 c = low; c < high; c += buffers) {
      u32 chunks = min(buffers, high - c);
      if (warp < chunks) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncwarp();
        own.patch(*this, c + warp, warp);
        __syncwarp();
        Weights w;
        Sums found = weights<ROWS>(c + warp, warp, 0, w);
        float* to = parts + warp * EACH * 32;
#pragma unroll
        for (u32 i = 0; i < TILES; i += EIGHTS) {
          float part[EIGHTS][4];
          times_values<ROWS>(w, warp, i, part);
#pragma unroll
          for (u32 j = 0; j < KEPT * EIGHTS; j++) to[(i * KEPT + j) * 32] = part[j / KEPT][j % KEPT];
        }
#pragma unroll
        for (u32 k = 0; k < ROWS; k++) to[(TILES * KEPT + k) * 32] = found.most[k], to[(TILES * KEPT + ROWS + k) * 32] = found.total[k];
        __syncwarp();
        ask(c + buffers + warp, warp, lane, 32);
      }
      together();
#pragma unroll 1
      for (u32 b = 0; b < chunks; b++) {
        const float* from = parts + b * EACH * 32;
        Sums found;
#pragma unroll
        for (u32 k = 0; k < ROWS; k++)
          found.most[k] = from[(TILES * KEPT + k) * 32], found.total[k] = from[(TILES * KEPT + ROWS + k) * 32];
        Scales s = meet<ROWS>(all, found);
#pragma unroll
        for (u32 i = 0; i < MINE; i++) {
          float part[KEPT];
#pragma unroll
          for (u32 k = 0; k < KEPT; k++) part[k] = from[((warp * MINE + i) * KEPT + k) * 32];
          add<ROWS>(sum[i], part, s);
        }
      }
      together();
    }
    leave<ROWS>(all, sum, 0, warp * MINE);
  }
  DEV void run() const {
    if constexpr (MOST <= M) run_narrow();
    else if (rows * group <= M) run_narrow();
    else run_wide();
  }
};
