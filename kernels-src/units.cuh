// What a lane keeps of the row, and how it multiplies: planes of bits, and floats.
#pragma once
#include "integers.cuh"
#include "stream.cuh"

// Four columns of a row, with zeros behind its end; those of block formats end with a block.
template <bool WHOLE>
DEV float4 quad_of(const float* x, u32 c, u32 cols) {
  float4 v = make_float4(0, 0, 0, 0);
  if (c + 4 <= cols) return cg_f32x4(x + c);
  if constexpr (!WHOLE) {
    if (c < cols) v.x = cg_f32(x + c);
    if (c + 1 < cols) v.y = cg_f32(x + c + 1);
    if (c + 2 < cols) v.z = cg_f32(x + c + 2);
  }
  return v;
}
DEV float square(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }
DEV float4 times(float4 v, float4 w) { return make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w); }

// Which of two is next, and when it is free: at first both are.
struct Turn {
  u32 which = 0, parity = 1;
  DEV void next() {
    if (which) parity ^= 1;
    which ^= 1;
  }
};
// Partial sums of two chunks `[panel][part][row][warp of the team]`, one being made while the other
// is added up.
struct __align__(16) Sums {
  float part[2][CHUNK * 2 * WARPS * PANEL];
  // Of the row that was multiplied: what each warp has of its squares.
  float squares[2][WARPS];
  u64 full[2], empty[2];
  DEV void begin(u32 which) {
    mbar_init(shared_address(full + which), 32 * WARPS);
    mbar_init(shared_address(empty + which), 32);
  }
  // For those who make one, and for the warp that adds it up. Before sm_90, where who waits for a barrier in memory asks again and
  // again, by a named one; racecheck forgets who arrived there once they meet at another, as for attention they do.
  DEV void done(u32 which) {
#if HOPPER
    mbar_arrive(shared_address(full + which));
#else
    __syncwarp();
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + which), "n"((WARPS + 1) * 32) : "memory");
#endif
  }
  DEV void wait(Turn turn) {
#if HOPPER
    mbar_wait(shared_address(full + turn.which), turn.parity ^ 1);
#else
    __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"r"(1 + turn.which), "n"((WARPS + 1) * 32) : "memory");
#endif
  }
};

// How scales are read, in few instructions: a scale, or one and what is added; of two levels those of a unit, or of its
// halves with what is added or without; a scale of entries of a table; else as the matrix says.
enum Path : u32 { ONE_SCALE, ONE_AND_MIN, SCALE_AND_MIN, HALVES, HALVES_AND_MIN, ENTRIES, ANY };

// Sums of COUNT values over LANES lanes, each NEXT behind the one before, several at once: what is left of the values goes
// half to one half of the lanes and half to the other. The first COUNT-th of the lanes end up with the first sum, and so on.
template <u32 COUNT, u32 LANES, u32 NEXT>
DEV float sums_over(float* v, u32 lane) {
#pragma unroll
  for (u32 o = LANES / 2 * NEXT, left = COUNT; o >= NEXT; o /= 2) {
    if (left == 1) {
      v[0] += __shfl_xor_sync(FULL, v[0], o);
      continue;
    }
    left /= 2;
    bool upper = lane & o;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++)
      if (i < left) v[i] = (upper ? v[i + left] : v[i]) + __shfl_xor_sync(FULL, upper ? v[i] : v[i + left], o);
  }
  return v[0];
}

// Planes of LO and HI bits: a lane has one row of a panel, and EACH units of 32 columns at a time.
template <int LO, int HI, u32 EACH = 1>
struct Planes {
  static constexpr u32 WARP_UNITS = 8 * EACH, QUADS = 2 * EACH;
  // Rows end with a unit.
  static constexpr bool WHOLE = true;

  // A lane has a row of a panel, and of eight units each time one.
  static DEV u32 row_of(u32 lane) { return lane % PANEL; }
  static DEV u32 unit_of(u32 lane) { return lane / PANEL; }
  // The lane's part of a unit's columns: a quad of the first half, and one of the second. Four lanes read 64 bytes in
  // a row: all blocks read the row at the same time, of the same few places of the second-level cache.
  static DEV u32 column(u32 first, u32 quad, u32 lane, u32 = 0) {
    return (first + quad / 2 * 8 + unit_of(lane)) * 32 + quad % 2 * 16 + lane % 4 * 4;
  }

  // A unit of the row as integers of 16 bits, two to a word.
  struct Integers {
    u32 pair[16];
    float scale;
    int sum0, sum1;
    // Four lanes make a unit together, and leave the integers for all.
    DEV void make(const float4* v, uint4* words, u32 lane) {
      Eight row(v);
      row.make<4>();
      scale = row.scale;
      u32 sum[2] = {0u - 4 * Eight::BASE, 0u - 4 * Eight::BASE};
#pragma unroll
      for (int i = 0; i < 8; i++) sum[i / 4] += row.n[i];
      auto two = [&](int i) { return __byte_perm(row.n[i], row.n[i + 1], 0x5410); };
      words[lane] = make_uint4(two(0), two(2), two(4), two(6));
#pragma unroll
      for (u32 o = 1; o < 4; o *= 2)
#pragma unroll
        for (u32 half = 0; half < 2; half++) sum[half] += __shfl_xor_sync(FULL, sum[half], o);
      sum0 = (int)sum[0], sum1 = (int)sum[1];
    }
    DEV void take(const uint4* words, u32 lane) {
#pragma unroll
      for (int q = 0; q < 4; q++) {
        uint4 w = words[lane / 4 * 4 + q];
        pair[2 * q] = w.x, pair[2 * q + 1] = w.y, pair[8 + 2 * q] = w.z, pair[9 + 2 * q] = w.w;
      }
    }
  };
  struct Unit {
    Integers of[EACH];
    DEV void make(const float4* v, uint4* words, u32 lane) {
#pragma unroll
      for (u32 e = 0; e < EACH; e++) of[e].make(v + 2 * e, words + 32 * e, lane);
      __syncwarp();
#pragma unroll
      for (u32 e = 0; e < EACH; e++) of[e].take(words + 32 * e, lane);
      __syncwarp();
    }
  };

  // What formats of these planes have.
  static DEV constexpr bool has(Path path) {
    if (path == HALVES) return LO + HI == 6 || LO + HI == 3;
    if (path == HALVES_AND_MIN) return LO == 2 && HI == 0;
    if (path == ONE_AND_MIN || path == SCALE_AND_MIN) return LO == 4 && HI < 2;
    if (path == ENTRIES) return LO == 4 && HI == 0;
    return path == ANY || LO + HI != 6 && LO + HI != 3;
  }
  // Where a lane's units of a part are, from the start of a slice, and how the part is to be read.
  struct Lane {
    u32 lo[EACH], hi[EACH], scales[EACH], d[EACH];
    u32 levels, min, halves, codes;
    int zero;
    Path path;
    DEV void find(const Matrix& m, u32 first, u32 member, u32 lane) {
      u32 row = row_of(lane), each = scale_bytes(m);
      levels = m.levels, min = m.min, halves = m.halves, codes = m.codes, zero = m.zero;
      path = ANY;
      if (levels == LEVEL_ONE && codes != TABLE && min == ZERO) path = ONE_SCALE;
      if (levels == LEVEL_ONE && codes == PLAIN && min == ONE) path = ONE_AND_MIN;
      if (levels == LEVEL_TWO && codes == PLAIN && min == ZERO && halves == 2) path = HALVES;
      if (levels == LEVEL_TWO && codes == PLAIN && min == TWO) path = halves == 1 ? SCALE_AND_MIN : HALVES_AND_MIN;
      if (levels != LEVEL_TWO && codes == TABLE && min == ZERO) path = ENTRIES;
      if (!has(path)) path = ANY;
#pragma unroll
      for (u32 e = 0; e < EACH; e++) {
        u32 local = member * WARP_UNITS + 8 * e + unit_of(lane);
        // Beyond the last unit a lane does the first one again, with a row of zeros.
        if (first + local >= m.units) local = 0;
        u32 span = local / PLANES_SPAN, in = local % PLANES_SPAN;
        u32 n = span_units<PLANES_SPAN>(m, first / PLANES_SPAN + span);
        u32 begin = span * m.span_bytes, unit = place_of(row, in);
        SpanAt at = span_at(m, n);
        lo[e] = begin + unit * (LO == 8 ? 16 : 4 * LO);
        hi[e] = begin + at.hi + unit * 4 * HI;
        scales[e] = begin + at.scales + unit * each;
        d[e] = LO == 8 ? PANEL * n * 16 : begin + at.d + row * d_bytes(m);
      }
    }
  };

  // A lane's unit in shared memory, of which each part is read when it is needed.
  struct There {
    const u8* panel;
    const Lane& at;
    u32 e;
    DEV void low(u32* w) const { load<LO>(panel + at.lo[e], LO == 8 ? at.d[e] : 0, w); }
    DEV void high(u32* w) const { load<HI>(panel + at.hi[e], 0, w); }
    template <class T>
    DEV T scale(u32 i = 0) const { return ((const T*)(panel + at.scales[e]))[i]; }
    template <class T>
    DEV T both(u32 i = 0) const { return ((const T*)(panel + at.d[e]))[i]; }
  };

  // What one unit of one row of weights adds.
  template <Path PATH, class Weights>
  static DEV float dot(const Matrix& m, const Weights& from, const Lane& at, const Integers& x) {
    u32 lo[LO], hi[HI ? HI : 1];
    from.low(lo);
    if constexpr (HI != 0) from.high(hi);
    // Sums of the two halves of a unit; or of places in a word, where codes of one plane stay, times a power of two.
    constexpr bool STAY = PATH != ANY && PATH != ENTRIES && HI == 0 && (LO == 4 || LO == 2);
    constexpr int PLACES = STAY ? 8 / LO : 2, UP = STAY ? 8 - LO : 0;
    int t[PLACES] = {};
    if constexpr (PATH == ENTRIES) {
#pragma unroll
      for (int q = 0; q < 4; q++) {
        // A word's codes go by twos of a quad of each half.
        u32 first, second;
        look_up_all(m.table, lo[q], first, second);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          u32 c = __byte_perm(first, second, half ? 0x7531 : 0x6420);
          t[half] = dot_low(x.pair[2 * (q + 4 * half)], c, t[half]);
          t[half] = dot_high(x.pair[2 * (q + 4 * half) + 1], c, t[half]);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < (PATH == ENTRIES ? 0 : 8); q++) {
      u32 c = STAY ? placed<LO>(lo, q) : quad<LO>(lo, q);
      if constexpr (HI != 0) c |= quad<HI>(hi, q) << LO;
      if (PATH == ANY && LO == 4 && HI == 0 && at.codes == TABLE) c = look_up(m.table, c);
      int& to = t[STAY ? q / LO : q / 4];
      to = dot_low(x.pair[2 * q], c, to);
      to = dot_high(x.pair[2 * q + 1], c, to);
    }
    if constexpr (PATH != ANY) {
      int sum = x.sum0 + x.sum1, all = t[0];
#pragma unroll
      for (int k = 1; k < PLACES; k++) all = all * (STAY ? 1 << LO : 1) + t[k];
      if (LO == 1 && HI == 0 && at.codes == DOUBLE) all *= 2;
      if constexpr (PATH == HALVES || PATH == HALVES_AND_MIN) {
        // The first half of the places, which are so much lower, and the second.
        constexpr int DOWN = STAY ? 4 : 0;
        int first = STAY ? t[0] * (1 << LO) + t[1] : t[0], second = STAY ? t[2] * (1 << LO) + t[PLACES - 1] : t[1];
        float v0 = (float)(first - (at.zero << UP - DOWN) * x.sum0) * (1.0f / (1 << UP - DOWN));
        float v1 = (float)(second - (at.zero << UP) * x.sum1) * (1.0f / (1 << UP));
        u32 steps = PATH == HALVES ? from.template scale<u16>() : from.template scale<u32>();
        u32 d = PATH == HALVES ? from.template both<u16>() : from.template both<u32>();
        float f = half_to_f32(d & 0xffff) * ((float)(i8)steps * v0 + (float)(i8)(steps >> 8) * v1);
        if (PATH == HALVES) return x.scale * f;
        float less = (float)(steps >> 16 & 0xff) * (float)x.sum0 + (float)(steps >> 24) * (float)x.sum1;
        return x.scale * (f - half_to_f32(d >> 16) * less);
      }
      float v = (float)(all - (at.zero << UP) * sum) * (1.0f / (1 << UP));
      if (PATH == ENTRIES)
        return (at.levels == EXPONENT ? power_of(from.template scale<u8>()) : half_to_f32(from.template scale<u16>())) * x.scale * v;
      if (PATH == ONE_SCALE) return half_to_f32(from.template scale<u16>()) * x.scale * v;
      if (PATH == ONE_AND_MIN) {
        u32 both = from.template scale<u32>();
        return x.scale * (half_to_f32(both & 0xffff) * v + half_to_f32(both >> 16) * (float)sum);
      }
      u32 steps = from.template scale<u16>(), d = from.template both<u32>();
      float less = half_to_f32(d >> 16) * (float)(steps >> 8) * (float)sum;
      return x.scale * (half_to_f32(d & 0xffff) * (float)(i8)steps * v - less);
    }
    int t0 = t[0], t1 = t[1];
    if (LO == 1 && HI == 0 && at.codes == DOUBLE) t0 *= 2, t1 *= 2;
    t0 -= at.zero * x.sum0, t1 -= at.zero * x.sum1;
    float s0, s1, m0 = 0, m1 = 0;
    if (at.levels == LEVEL_ONE) {
      u32 w = at.min == ONE ? from.template scale<u32>() : from.template scale<u16>();
      s0 = s1 = half_to_f32(w & 0xffff);
      if (at.min == ONE) m0 = m1 = half_to_f32(w >> 16);
    } else if (at.levels == EXPONENT) {
      s0 = s1 = power_of(from.template scale<u8>());
    } else {
      float all = half_to_f32(from.template both<u16>());
      s0 = all * (float)from.template scale<i8>();
      s1 = at.halves == 2 ? all * (float)from.template scale<i8>(1) : s0;
      if (at.min == TWO) {
        float least = half_to_f32(from.template both<u16>(1));
        m0 = -(least * (float)from.template scale<u8>(at.halves));
        m1 = at.halves == 2 ? -(least * (float)from.template scale<u8>(3)) : m0;
      }
    }
    float f = at.halves == 2 ? s0 * (float)t0 + s1 * (float)t1 : s0 * (float)(t0 + t1);
    if (at.min != ZERO)
      f += at.halves == 2 ? m0 * (float)x.sum0 + m1 * (float)x.sum1 : m0 * (float)(x.sum0 + x.sum1);
    return x.scale * f;
  }

  // Two signed integers of 16 bits times the lower or the upper two unsigned bytes.
  static DEV int dot_low(u32 pair, u32 codes, int sum) {
    int r;
    asm("dp2a.lo.s32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(pair), "r"(codes), "r"(sum));
    return r;
  }
  static DEV int dot_high(u32 pair, u32 codes, int sum) {
    int r;
    asm("dp2a.hi.s32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(pair), "r"(codes), "r"(sum));
    return r;
  }

  // The words of a unit of one plane; those of 8 bits are in two pieces.
  template <int BITS>
  static DEV void load(const u8* at, u32 further, u32* w) {
    if constexpr (BITS == 8) {
      uint4 a = *(const uint4*)at, b = *(const uint4*)(at + further);
      w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
      w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
    } else if constexpr (BITS == 4) {
      uint4 a = *(const uint4*)at;
      w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
    } else if constexpr (BITS == 2) {
      uint2 a = *(const uint2*)at;
      w[0] = a.x, w[1] = a.y;
    } else {
      w[0] = *(const u32*)at;
    }
  }

  // Slices `k`, `k + step`, … of the `n` of a page; sums go to `to`. `again` adds to those of the
  // passes before.
  template <Path PATH, bool MANY>
  static DEV void multiply(const Matrix& m, const u8* page, u32 slice, u32 k, u32 step, u32 n, const Lane& at,
                           const Unit& x, bool again, float* to, u32 lane) {
    // Two planes and more than a scale are more than a block has registers for beside another block. Of a row that comes as
    // integers a page has two panels of up to 4 bits, or one of more.
    constexpr bool FEW = PATH == ANY || LO == 8 || !MANY && PATH == ENTRIES || !MANY && HI && PATH != ONE_SCALE;
    constexpr u32 COUNT = EACH == 4 ? LO + HI > 4 ? 1 : 2 : FEW ? 2 : 4;
    if (MANY && EACH == 1 && n > COUNT * step) some<2 * COUNT, PATH>(m, page, slice, k, step, n, at, x, again, to, lane);
    else some<COUNT, PATH>(m, page, slice, k, step, n, at, x, again, to, lane);
  }
  // Several at a time, so that no warp waits for one.
  template <u32 COUNT, Path PATH>
  static DEV void some(const Matrix& m, const u8* page, u32 slice, u32 k, u32 step, u32 n, const Lane& at,
                       const Unit& x, bool again, float* to, u32 lane) {
#pragma unroll 1
    for (; k < n; k += COUNT * step) {
      float f[COUNT];
#pragma unroll
      for (u32 i = 0; i < COUNT; i++) {
        const u8* panel = page + min(k + i * step, n - 1) * slice;
        f[i] = dot<PATH>(m, There{panel, at, 0}, at, x.of[0]);
#pragma unroll
        for (u32 e = 1; e < EACH; e++) f[i] += dot<PATH>(m, There{panel, at, e}, at, x.of[e]);
      }
      float v = sums_over<COUNT, 8, PANEL>(f, lane);
      u32 mine = k + unit_of(lane) / (8 / COUNT) * step;
      float* put = to + mine * NEXT_PANEL + row_of(lane) * WARPS;
      if (unit_of(lane) % (8 / COUNT) == 0 && mine < n) *put = again ? *put + v : v;
    }
  }
};

// A row that comes as integers (`leave_integers`), for planes P; it has no norm.
template <class P>
struct Rounded : P {
  static constexpr u32 EACH = P::QUADS / 2;
  // Of integers four lanes have a quarter of a unit's each; then of what is said of them.
  static DEV u32 column(u32 first, u32 quad, u32 lane, u32 cols) {
    u32 unit = first + quad % EACH * 8 + P::unit_of(lane);
    if (unit * 32 >= cols) return cols;
    return quad < EACH ? unit * 16 + lane % 4 * 4 : cols / 2 + unit * 4;
  }
  // Entries of a table take more than rounding does.
  static DEV constexpr bool has(Path path) { return path != ENTRIES && P::has(path); }
  struct Unit : P::Unit {
    DEV void make(const float4* v, uint4* words, u32 lane) {
      // As many at a time as there are words for.
#pragma unroll
      for (u32 e = 0; e < EACH; e++) {
        auto integers = [](float two) { return __float_as_uint(two) ^ PAIR; };
        auto sum = [](float v) { return (int)(__float_as_uint(v) ^ SUM); };
        words[32 * (e % 2) + lane] = make_uint4(integers(v[e].x), integers(v[e].y), integers(v[e].z), integers(v[e].w));
        auto& of = this->of[e];
        of.scale = v[EACH + e].x, of.sum0 = sum(v[EACH + e].y), of.sum1 = sum(v[EACH + e].z);
        if (e % 2 == 0) continue;
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < 2; i++) this->of[e - 1 + i].take(words + 32 * i, lane);
        __syncwarp();
      }
    }
  };
};

template <class F>
constexpr bool AS_INTEGERS = false;
// What is multiplied in no other way: of two planes of 5 or 6 bits and integers there are no registers to look at everything.
template <class F>
constexpr Path REST = ANY;
template <u32 EACH>
constexpr Path REST<Rounded<Planes<4, 1, EACH>>> = SCALE_AND_MIN;
template <u32 EACH>
constexpr Path REST<Rounded<Planes<4, 2, EACH>>> = HALVES;
template <class P>
constexpr bool AS_INTEGERS<Rounded<P>> = true;

// Floats of KIND: a lane has all four rows of a panel, and units of 16 bytes.
template <u32 KIND>
struct Floats {
  static constexpr u32 WARP_UNITS = 32, COLUMNS = KIND == F32 ? 4 : 8, QUADS = COLUMNS / 4;

  static constexpr bool WHOLE = false;

  static DEV u32 column(u32 first, u32 quad, u32 lane, u32 = 0) { return (first + lane) * COLUMNS + quad * 4; }

  struct Unit {
    float4 v[QUADS];
    DEV void make(const float4* from, uint4*, u32) {
#pragma unroll
      for (u32 i = 0; i < QUADS; i++) v[i] = from[i];
    }
  };

  struct Lane {
    u32 at, line;
    Path path;
    DEV void find(const Matrix& m, u32 first, u32 member, u32 lane) {
      u32 span = member;
      // Beyond the last unit a lane does the first one again, with a row of zeros.
      bool in = first + span * FLOATS_SPAN + lane < m.units;
      if (!in) span = 0;
      line = span_units<FLOATS_SPAN>(m, first / FLOATS_SPAN + span) * 16;
      at = span * m.span_bytes + (in ? lane * 16 : 0);
    }
  };

  static DEV constexpr bool has(Path path) { return path == ANY; }
  template <Path, bool MANY>
  static DEV void multiply(const Matrix&, const u8* page, u32 slice, u32 k, u32 step, u32 n, const Lane& at,
                           const Unit& x, bool again, float* to, u32 lane) {
    if (MANY && n > step) some<2>(page, slice, k, step, n, at, x, again, to, lane);
    else some<1>(page, slice, k, step, n, at, x, again, to, lane);
  }
  template <u32 COUNT>
  static DEV void some(const u8* page, u32 slice, u32 k, u32 step, u32 n, const Lane& at, const Unit& x, bool again,
                       float* to, u32 lane) {
    constexpr u32 ALL = COUNT * PANEL;
#pragma unroll 1
    for (; k < n; k += COUNT * step) {
      float f[ALL];
#pragma unroll
      for (u32 i = 0; i < ALL; i++)
        f[i] = dot(*(const uint4*)(page + min(k + i / PANEL * step, n - 1) * slice + at.at + i % PANEL * at.line), x);
      float v = sums_over<ALL, 32, 1>(f, lane);
      u32 output = lane / (32 / ALL), mine = k + output / PANEL * step;
      float* put = to + mine * NEXT_PANEL + output % PANEL * WARPS;
      if (lane % (32 / ALL) == 0 && mine < n) *put = again ? *put + v : v;
    }
  }
  static DEV float dot(uint4 w, const Unit& x) {
    float4 a = x.v[0];
    if constexpr (KIND == F32) {
      return __uint_as_float(w.x) * a.x + __uint_as_float(w.y) * a.y + __uint_as_float(w.z) * a.z +
             __uint_as_float(w.w) * a.w;
    } else {
      float4 b = x.v[QUADS - 1];
      auto low = [](u32 v) { return KIND == BF16 ? bf16_low(v) : half_to_f32(v & 0xffff); };
      auto high = [](u32 v) { return KIND == BF16 ? bf16_high(v) : half_to_f32(v >> 16); };
      float half = low(w.x) * a.x + high(w.x) * a.y + low(w.y) * a.z + high(w.y) * a.w;
      return half + (low(w.z) * b.x + high(w.z) * b.y + low(w.w) * b.z + high(w.w) * b.w);
    }
  }
};
