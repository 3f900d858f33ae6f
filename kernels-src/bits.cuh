// Planes of 1 and 2 bits by tensor cores that count bits, where 128 columns or more have one scale.
//
// A row is integers of 16 bits, as bits by their weight: what all bits of a weight come to, of codes and integers, is a
// count of places that have both. Codes stay as they lie in memory; of 16 outputs and 128 columns, which two or three
// instructions count, there are 16 numbers to add up, so that a product is mostly reading.
#pragma once
#include "units.cuh"

// Units of a lane's share of an instruction's columns, one of each of four lanes.
constexpr u32 BITS_UNITS = 4;
// What Planes<BITS, 0, EACH> multiplies, if Matrix::halves is 0.
template <int BITS, u32 EACH = 1>
struct Bits {
  typedef Planes<BITS, 0, EACH> Of;
  static constexpr u32 WARP_UNITS = Of::WARP_UNITS, QUADS = Of::QUADS;
  static constexpr bool WHOLE = true;
  // Bits of a code and of an integer together have so many weights, eight to an instruction.
  static constexpr u32 WEIGHTS = 16 + BITS - 1, COUNTS = (WEIGHTS + 7) / 8;

  static DEV u32 column(u32 first, u32 quad, u32 lane, u32 cols) { return Of::column(first, quad, lane, cols); }

  // The right sides of a lane, for 128 columns: bits of weight `lane / 4` and of those eight higher, of unit `lane % 4`.
  struct Columns {
    u32 bits[COUNTS][BITS];
    int sum;
  };
  struct Unit {
    Columns of[EACH][2];
    float scale[EACH];
    // A lane has eight columns of a unit: quads r and r + 4, if it is the `r`th of four.
    DEV void make(const float4* v, uint4* words, u32 lane) {
#pragma unroll
      for (u32 e = 0; e < EACH; e++) leave(v + 2 * e, (u32*)words + 128 * e, lane, e);
      __syncwarp();
#pragma unroll
      for (u32 e = 0; e < EACH; e++) take((const u32*)words + 128 * e, lane, e);
      __syncwarp();
    }
    DEV void leave(const float4* v, u32* words, u32 lane, u32 e) {
      Eight row(v);
      row.make<32>();
      scale[e] = row.scale;
      u32 sum = 0u - 8 * Eight::BASE;
#pragma unroll
      for (u32 i = 0; i < 8; i++) sum += row.n[i];
#pragma unroll
      for (u32 b = 0; b < 2; b++) of[e][b].sum = __reduce_add_sync(FULL, lane / 16 == b ? (int)sum : 0);
      // Nibbles of weights 4 p to 4 p + 3, of a place each for the eight columns; then, of all four lanes, of one weight each.
      u32 low[2], high[2], nibbles[4];
#pragma unroll
      for (u32 h = 0; h < 2; h++) {
        u32 a = __byte_perm(row.n[4 * h], row.n[4 * h + 1], 0x5140), b = __byte_perm(row.n[4 * h + 2], row.n[4 * h + 3], 0x5140);
        low[h] = __byte_perm(a, b, 0x5410), high[h] = __byte_perm(a, b, 0x7632);
      }
      constexpr u32 LOW = 0x0f0f0f0f;
      nibbles[0] = low[0] & LOW | low[1] << 4 & ~LOW, nibbles[1] = low[0] >> 4 & LOW | low[1] & ~LOW;
      nibbles[2] = high[0] & LOW | high[1] << 4 & ~LOW, nibbles[3] = high[0] >> 4 & LOW | high[1] & ~LOW;
      u32 unit = lane / 4, r = lane % 4;
#pragma unroll
      for (u32 p = 0; p < 4; p++)
        words[place(4 * p + r, unit)] = turned(turned(nibbles[p], r, 1, 0x55555555), r, 2, 0x33333333);
    }
    DEV void take(const u32* words, u32 lane, u32 e) {
#pragma unroll
      for (u32 b = 0; b < 2; b++) {
        u32 unit = BITS_UNITS * b + lane % 4;
#pragma unroll
        for (u32 k = 0; k < COUNTS; k++) {
          u32 weight = 8 * k + lane / 4, own = weight < 16 ? words[place(weight, unit)] : 0;
          u32* to = of[e][b].bits[k];
          if constexpr (BITS == 1) {
            to[0] = own;
          } else {
            // The upper bit of a code is twice as much: it meets the bit of an integer that is half. Above all of them both
            // meet the integer's sign.
            constexpr u32 EVEN = 0x55555555;
            u32 half = weight > 0 && weight <= 16 ? words[place(weight - 1, unit)] : 0;
            if (weight == 16) own = half;
            to[0] = own & EVEN | half << 1 & ~EVEN, to[1] = own >> 1 & EVEN | half & ~EVEN;
          }
        }
      }
    }
    // Without conflicts of banks for those who write, of all units, and for those who read.
    static DEV u32 place(u32 weight, u32 unit) { return weight * 8 + (unit ^ weight & 4); }
    // Bits of places `not keep` of one lane for those of places `keep` of the lane `by` further.
    static DEV u32 turned(u32 v, u32 r, u32 by, u32 keep) {
      u32 other = __shfl_xor_sync(FULL, v, by);
      return r & by ? other >> by & keep | v & ~keep : v & keep | other << by & ~keep;
    }
  };

  // Where a lane's words of 128 columns are, from the start of a slice, and their scale.
  struct Lane {
    u32 at[EACH][2], scales[EACH][2];
    float times;
    int zero;
    Path path;
    DEV void find(const Matrix& m, u32 first, u32 member, u32 lane) {
      path = ANY, zero = m.zero, times = m.codes == DOUBLE ? 2.0f : 1.0f;
      u32 row = lane / 4 % PANEL;
#pragma unroll
      for (u32 i = 0; i < 2 * EACH; i++) {
        u32 local = member * WARP_UNITS + BITS_UNITS * i;
        // Beyond the last unit a lane does the first ones again, with a row of zeros.
        if (first + local >= m.units) local = 0;
        u32 span = local / PLANES_SPAN, unit = local % PLANES_SPAN + lane % 4;
        u32 n = span_units<PLANES_SPAN>(m, first / PLANES_SPAN + span), begin = span * m.span_bytes;
        at[i / 2][i % 2] = begin + place_of(row, unit) * 4 * BITS;
        scales[i / 2][i % 2] = begin + span_at(m, n).scales + place_of(row, unit) * 2;
      }
    }
  };

  static DEV constexpr bool has(Path path) { return path == ANY; }
  template <Path, bool MANY>
  static DEV void multiply(const Matrix&, const u8* page, u32 slice, u32 k, u32 step, u32 n, const Lane& at, const Unit& x,
                           bool again, float* to, u32 lane) {
    // No more than there are registers for.
    constexpr u32 MOST = MANY && BITS * EACH <= 2 ? 2 : 1;
    if (MOST > 1 && n > 4 * step) some<MOST>(page, slice, k, step, n, at, x, again, to, lane);
    else some<1>(page, slice, k, step, n, at, x, again, to, lane);
  }
  // Four panels at a time are the 16 outputs of an instruction; TILES of them, so that none waits for another.
  template <u32 TILES>
  static DEV void some(const u8* page, u32 slice, u32 k, u32 step, u32 n, const Lane& at, const Unit& x, bool again, float* to,
                       u32 lane) {
    constexpr u32 HALVES = 2 * TILES;
    u32 g = lane / 4, t = lane % 4;
    // A lane has counts of weights 2 t and 2 t + 1 of every eight.
    float up = at.times * (float)(1u << 2 * t);
    // With 16 weights the highest is a sign's; with more there is a count for it.
    int sign = BITS == 1 && t == 3 ? -2 : 2;
#pragma unroll 1
    for (; k < n; k += 4 * TILES * step) {
      float f[HALVES] = {};
#pragma unroll
      for (u32 e = 0; e < EACH; e++) {
#pragma unroll
        for (u32 b = 0; b < 2; b++) {
          const Columns& c = x.of[e][b];
          float factor = x.scale[e] * up, less = t == 0 ? -(float)(at.zero * c.sum) * x.scale[e] : 0.0f;
#pragma unroll
          for (u32 tile = 0; tile < TILES; tile++) {
            u32 a[2][BITS];
            float scale[2];
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
              const u8* panel = page + min(k + (4 * tile + 2 * h + g / 4) * step, n - 1) * slice;
              Of::template load<BITS>(panel + at.at[e][b], 0, a[h]);
              scale[h] = half_to_f32(*(const u16*)(panel + at.scales[e][b]));
            }
            int counts[COUNTS][4];
#pragma unroll
            for (u32 i = 0; i < COUNTS; i++) count(counts[i], a, c.bits[i]);
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
              int v = counts[0][2 * h] + 2 * counts[0][2 * h + 1] + 256 * (counts[1][2 * h] + sign * counts[1][2 * h + 1]);
              if constexpr (COUNTS == 3) v -= 65536 * counts[2][2 * h];
              f[2 * tile + h] += scale[h] * __fmaf_rn((float)v, factor, less);
            }
          }
        }
      }
      float v = sums_over<HALVES, 4, 1>(f, lane);
      u32 mine = k + (t / (4 / HALVES) * 2 + g / 4) * step;
      float* put = to + mine * NEXT_PANEL + g % PANEL * WARPS;
      if (t % (4 / HALVES) == 0 && mine < n) *put = again ? *put + v : v;
    }
  }
  // Of rows g and g + 8, and weights 2 t and 2 t + 1: places that both sides have.
  static DEV void count(int* c, const u32 (*a)[BITS], const u32* b) {
    if constexpr (BITS == 1) {
      asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
          : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
          : "r"(a[0][0]), "r"(a[1][0]), "r"(b[0]), "r"(0));
    } else {
      asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
          : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
          : "r"(a[0][0]), "r"(a[1][0]), "r"(a[0][1]), "r"(a[1][1]), "r"(b[0]), "r"(b[1]), "r"(0));
    }
  }
};

// Whether a kernel's planes may be counted, and by what.
template <class F>
struct Counted {
  static constexpr bool POSSIBLE = false;
};
template <u32 EACH>
struct Counted<Planes<1, 0, EACH>> {
  static constexpr bool POSSIBLE = true;
  typedef Bits<1, EACH> By;
};
template <u32 EACH>
struct Counted<Planes<2, 0, EACH>> {
  static constexpr bool POSSIBLE = true;
  typedef Bits<2, EACH> By;
};
