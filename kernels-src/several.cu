// A chain of products over two to eight rows as one kernel, a block on every multiprocessor.
//
// Weights of product after product come through one ring, asked for by a warp that waits for no rows, so that
// memory goes on while products wait for each other. They wait for numbers (fresh.cuh), hence for all blocks, and
// the launch is cooperative. Eight warps multiply, as in few90.cuh: a warp has 16 outputs and one or some of the stretches
// that a product's inputs are summed up in, and what its lanes take is made by the block: rows are read as
// they are, go through a norm if there is one before the product, and are split. Of rows so long that this would take
// most of the time a block makes an eighth, which is a stretch, for eight times as many outputs; what stretches come to is
// left as numbers are, and blocks add it up. Order of sums, norm (square.cuh) and
// splitting are those of the kernels for any number of rows, and so are the bits.
#include "several.cuh"
#include "numbers.cuh"

#if HOPPER
// A warp's 16 outputs of a job, and where they are.
struct __align__(16) Found {
  u32 which, domain, first, outputs;
};

struct Work {
  Links<SeveralLink, HELD_LINKS, WARPS + 1> links;
  float sums[2][WARPS * ROWS_MOST * SUMS_WIDTH];
  float squares[ROWS_MOST][NORM_BLOCKS];
  __align__(16) float norm[WARPS][AT_A_TIME * 128];
  // The link at hand: registers are full, and a thread's own memory is as far as the second-level cache.
  u32 link[WARPS];
  // What each warp has to do next.
  Found found[WARPS];
  u64 full[MAX_STAGES], empty[MAX_STAGES];
};

// Blocks `from` to `to` of the columns, which are part `part` of all, whose rows are at `rows` and their sums, if any, at `sums`.
template <class S>
DEV void multiply_blocks(const Several& p, Walk& walk, const Matrix& a, const Matrix& b, u32 row, u32 part, u32 from, u32 to,
                         u32 rows, u32 sums, float* acc) {
  S share;
  u32 zero = 0;
  asm volatile("" : "+r"(zero));
  u32 lane = walk.lane, q = lane % 4, half = lane / 16, panel = walk.stage_bytes / 4, page = 0, paged = log_of(p.paged), sides[2] = {};
  share.begin(a, b, p.part[0], q);
  // Sums of stretches that are done: before the first one what changes nothing.
  float done[4] = {-0.0f, -0.0f, -0.0f, -0.0f};
  u32 log = log_of(p.parts * p.each), n = p.cols / 128, s = part * p.each + 1, next = n * s >> log;
#pragma unroll 1
  for (u32 block = from; block < to; block++, rows += BLOCK_BYTES) {
    if (block == from || block % S::BLOCKS == 0) {
      u32 span = block / S::BLOCKS - walk.begins, in = span & p.paged - 1;
      if (block == from || in == 0) page = walk.page(span >> paged) + half * panel;
      sides[0] = page + in * a.span_bytes, sides[1] = page + 2 * panel + in * b.span_bytes;
    }
    share.turn(a, b, sides, row, block, block == from, q);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      share.template fetch<true>(a, b, q, step);
      if ((step + 1) % S::AT_ONCE) continue;
      multiply_steps(share, a, b, step + 1 - S::AT_ONCE, zero, [&](int step, u32 x, u32 (&r)[4]) {
        u32 i = step * 2 + x;
        weights(rows + i * 512 + (lane ^ i % 4) * 16, r[0], r[1], r[2], r[3]);
      }, sums, acc);
    }
    if (S::SUMMED && sums) sums += SUMS;
    if (block + 1 != next) continue;
    next = n * ++s >> log;
#pragma unroll
    for (u32 j = 0; j < 4; j++) done[j] += acc[j], acc[j] = 0.0f;
  }
#pragma unroll
  for (u32 j = 0; j < 4; j++) acc[j] = done[j];
}

DEV constexpr u32 kind_of(int lo, int hi) {
  return lo == 8 ? L8 : lo == 1 ? L1 : lo == 2 ? (hi ? L21 : L2) : hi == 0 ? L4 : hi == 1 ? L41 : L42;
}
// How planes are looked at: the first that takes them.
template <int LO, int HI, u32 FIRST, u32... REST, class... Of>
DEV void multiply_planes(const Several& p, Walk& walk, const Matrix& a, const Matrix& b, Of... of) {
  typedef PlanesPage<LO, HI, FIRST, at_once(LO, HI, FIRST)> Page;
  if constexpr (sizeof...(REST) == 0) multiply_blocks<Page>(p, walk, a, b, of...);
  else if (Page::takes(a, b, p.part[0])) multiply_blocks<Page>(p, walk, a, b, of...);
  else multiply_planes<LO, HI, REST...>(p, walk, a, b, of...);
}

// The warps that multiply meet.
DEV void meet() { asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory"); }

// Outputs of 16, of one domain, and what becomes of them.
struct Outputs {
  const Epilogue& e;
  u32 first, outputs, rows;
  bool two;
  long long next;
  DEV Outputs(const Several& p, Tile tile, u32 sub, u32 rows, long long next)
      : e(p.domain[tile.domain].epilogue), rows(rows), next(next) {
    two = p.domain[tile.domain].parts != 1;
    first = tile.first + sub % 4 * (two ? 8 : 16), outputs = tile.outputs;
  }
  // Of two parts the first eight outputs have their partners behind them.
  DEV bool on(u32 o) const { return first + o < outputs && !(two && o >= 8); }
  DEV const float* residual(u32 row, u32 o) const {
    return e.residual.at + (e.residual.where == VECTOR ? 0 : (u64)row * e.residual.n) + first + o;
  }
  DEV float early(u32 row, u32 o) const {
    return e.form == RESIDUAL && row < rows && on(o) ? fresh_f32(residual(row, o)) : 0.0f;
  }
  DEV void finish(u32 row, u32 o, float v, float partner, float early) const {
    if (!on(o)) return;
    float* out = e.out + (u64)row * e.out_stride + first + o;
    if (row >= rows) {
      // Another step may have more rows.
      if (next) take_out(out, next);
      return;
    }
    if (e.form == GATED) v = gate(e, v) * partner;
    if (e.form == RESIDUAL) {
      while (e.residual.where == FRESH && is_nobody(early)) early = fresh_f32(residual(row, o));
      v = early + v;
    }
    if (next) leave(out, v, next);
    else __stcg(out, v);
  }
};
// Of parts, in the order of `add_up`: of eight, and of as many as there are.
DEV float sum_of_parts(const float* v) {
  return (((v[0] + v[1]) + v[2]) + v[3]) + (((v[4] + v[5]) + v[6]) + v[7]);
}
DEV float sum_up_parts(const float* sums, u32 parts) {
  auto at = [&](u32 s) { return sums[s * ROWS_MOST * SUMS_WIDTH]; };
  if (parts == 2) return at(0) + at(1);
  if (parts == 4) return (at(0) + at(1)) + (at(2) + at(3));
  float v[WARPS];
#pragma unroll
  for (u32 s = 0; s < WARPS; s++) v[s] = at(s);
  return sum_of_parts(v);
}
// Of a lane at most.
constexpr u32 RESULTS = 4;

// Makes blocks from `block`, whose numbers were asked for. Of a norm the weights, which go to `norm`, are multiplied into them,
// and its factor is for the sums: squares of blocks of eight rows go to `squares`.
DEV void make_rows(const Several& p, Numbers& x, u32 block, bool two, bool normed, u32 at, u32 sums, u32 norm,
                   float (*squares)[NORM_BLOCKS], u32 lane) {
  if (!normed) {
    x.settle(block, two);
  } else {
    float sum[AT_A_TIME];
    auto nan = [&]() {
#pragma unroll
      for (u32 k = 0; k < AT_A_TIME; k++) sum[k] = squares_of_lanes(x.v[k]) + squares_of_lanes(x.v[k] + 4);
      return sum[0] + sum[1] != sum[0] + sum[1];
    };
    if (x.polls) x.settle(block, two, nan);
    else nan();
#pragma unroll
    for (u32 k = 0; k < AT_A_TIME; k++)
      if (lane % 4 == 0 && (k == 0 || two)) squares[lane / 4][block + k] = sum[k];
    norm_is_there();
#pragma unroll
    for (u32 k = 0; k < 8 * AT_A_TIME; k++) {
      float4& v = x.v[k / 8][k % 8];
      u32 w[4];
      weights(norm + (k * 16 + lane % 4 * 4) * 4, w[0], w[1], w[2], w[3]);
      v = times(v, make_float4(__uint_as_float(w[0]), __uint_as_float(w[1]), __uint_as_float(w[2]), __uint_as_float(w[3])));
    }
    // All have read them before others come.
    __syncwarp();
  }
#pragma unroll
  for (u32 k = 0; k < AT_A_TIME; k++) {
    if (k && !two) break;
    if (p.part[0].kind == PLANES) lay_block<true>(x.v[k], at + k * BLOCK_BYTES, lane);
    else lay_block<false>(x.v[k], at + k * BLOCK_BYTES, lane);
    if (sums) lay_sums(x.v[k], sums + k * SUMS, lane);
  }
}

// The norm's factor of a row, of which four lanes know the squares: that of row `lane` / 4.
DEV float factor_of(const Several& p, const float* squares, u32 lane) {
  u32 all = p.cols / SQUARED;
  auto eighth = [&](u32 at) {
    float sum = 0;
#pragma unroll 1
    for (; at < all; at += 32) sum += squares[at / 2] + (at + 2 < all ? squares[at / 2 + 1] : 0.0f);
    return sum;
  };
  u32 at = lane % 4 * 4;
  float sum = eighth(at) + eighth(at + 16);
  return norm_factor(sum_of_lanes(sum, 1, 2), p.cols, p.eps);
}

struct Consumer {
  Work& b;
  u32 rows, warp, lane, frags, parity;
  Walk walk;
  Stage base;

  // Looks a job up, before its rows are there: what is found stays in shared memory, since registers are for rows.
  DEV void find(const Several& p, u32 job) const {
    bool has = p.apart || warp >> log_of(p.parts) < p.subs;
    u32 which = has ? Part(p, job, warp).sub : job * p.subs;
    Tile tile = tile_of(p, which / 4);
    if (lane == 0) b.found[warp] = {which, tile.domain, tile.first, tile.outputs};
    __syncwarp();
  }

  DEV void link(const SeveralLink& l) {
    const Several& p = l.product;
    u32 parts = p.parts, log = log_of(parts), subs = p.subs, n = p.cols / 128;
    Owners owners(p);
    u32 job = first_job(p);
    if (job >= p.jobs) {
      if (p.apart) finish_apart(p, l.fresh.next);
      return;
    }
    find(p, job);
    // The part of the columns that this warp makes; of eight short ones it is its own one. Of a block's own stretch
    // warps make a part each.
    bool apart = p.apart != nullptr;
    u32 all = apart ? n / WARPS : n, before = apart ? job % WARPS * all : 0;
    u32 from = before + all * warp / WARPS, to = before + all * (warp + 1) / WARPS;
    bool own = parts == WARPS && !apart && n <= WARPS * AT_A_TIME;
    u32 mine = own ? warp * AT_A_TIME : from - before, weights = shared_address(b.norm[warp]);
    // Where blocks of this block's rows lie, and their sums.
    auto rows_at = [&](u32 place) { return frags + place * BLOCK_BYTES; };
    auto sums_at = [&](u32 place) { return p.sums ? frags + p.sums + place * SUMS : 0; };
    Numbers x(p, rows, lane, l.fresh.polls);
    bool normed = p.norm != nullptr;
#pragma unroll 1
    for (u32 block = from; block < to; block += AT_A_TIME) {
      bool two = block + 1 < to;
      u32 place = mine + block - from;
      // First: what is read behind so many loads waits for them.
      if (normed) ask_norm(p, weights, block, two, lane);
      x.ask(block, two);
      make_rows(p, x, block, two, normed, rows_at(place), sums_at(place), weights, b.squares, lane);
    }
    if (!own) meet();
    else __syncwarp();
    float factor = 1.0f;
    if (p.norm && !own) factor = factor_of(p, b.squares[lane / 4], lane);
    u32 sub = apart ? 0 : warp >> log, part = Part(p, job, warp).part;
    u32 begin = n * part >> log, end = n * (part + 1) >> log;
    walk.arrivals = p.alone ? WARPS : WARPS >> log, walk.step = owners.count;
    u32 begins = p.alone ? part * owners.spans : 0;
    // Warps may be more than a job has outputs for.
    bool has = sub < subs;
    u32 q = lane % 4, g = lane / 4;
#pragma unroll 1
    for (; job < p.jobs; job += next_job(p)) {
      uint4 found = *(const uint4*)&b.found[warp];
      u32 which = found.x;
      Tile tile = {found.y, found.z, found.w};
      // Tiles begin with panels: which row of one a lane has is the same for all.
      const Domain& d = p.domain[tile.domain];
      const Matrix &m0 = p.part[d.part[0]], &m1 = p.part[d.part[d.parts == 1 ? 0 : 1]];
      // This lane's results: as the tensor cores leave them, or of those that the warps of 16 outputs add up.
      u32 results = parts == 1 ? 4 : parts == 2 ? 2 : part < 4;
      auto row_of = [&](u32 k) { return parts == 1 ? 2 * q + k % 2 : (part * 32 + lane + k * 32 * parts) / 16; };
      auto output_of = [&](u32 k) { return parts == 1 ? g + k / 2 * 8 : lane % 16; };
      float early[RESULTS];
#pragma unroll
      for (u32 k = 0; k < RESULTS; k++)
        early[k] = has && k < results ? Outputs(p, tile, which, rows, l.fresh.next).early(row_of(k), output_of(k)) : 0.0f;
      walk.begins = begins, walk.at = 0, walk.stage = base;
      walk.stage.step(p.alone ? warp : warp >> log, walk.stages);
      float acc[4] = {};
      u32 place = own ? mine : begin - before;
      if (has && begin < end) {
#define MULTIPLY(...) __VA_ARGS__(p, walk, m0, m1, lane / 4 % PANEL, part, begin, end, rows_at(place), sums_at(place), acc)
#define PLANES(LO, HI, ...) \
  case kind_of(LO, HI): MULTIPLY(multiply_planes<LO, HI, __VA_ARGS__>); break;
        switch (l.kind) {
          OF_PLANES(PLANES)
          case LF32: MULTIPLY(multiply_blocks<FloatPage<F32>>); break;
          case LF16: MULTIPLY(multiply_blocks<FloatPage<F16>>); break;
          default: MULTIPLY(multiply_blocks<FloatPage<BF16>>);
        }
        __syncwarp();
      }
      if (has) walk.end(owners.pages);
      base.step(owners.pages * owners.count, walk.stages);
      u32 then = job + next_job(p);
      if (then < p.jobs) find(p, then);
      if (apart) {
        leave_apart(p, which, part, acc, l.fresh.next);
        continue;
      }
      Outputs out(p, tile, which, rows, l.fresh.next);
      if (parts == 1) {
        if (has) {
#pragma unroll
          for (u32 k = 0; k < RESULTS; k++) {
            float of_row = __shfl_sync(FULL, factor, row_of(k) * 4);
            out.finish(row_of(k), output_of(k), acc[k] * of_row, acc[k % 2 + 2] * of_row, early[k]);
          }
        }
        continue;
      }
      float* sums = b.sums[parity];
      parity ^= 1;
      float* to_sums = sums + warp * ROWS_MOST * SUMS_WIDTH + 2 * q * SUMS_WIDTH + g;
#pragma unroll
      for (u32 j = 0; j < 4; j++) to_sums[j % 2 * SUMS_WIDTH + j / 2 * 8] = acc[j];
      meet();
      // Its squares are all there now.
      if (p.norm && own) factor = factor_of(p, b.squares[lane / 4], lane);
#pragma unroll
      for (u32 k = 0; k < 2; k++) {
        if (!has || k >= results) continue;
        const float* from = sums + (sub * parts * ROWS_MOST + row_of(k)) * SUMS_WIDTH + output_of(k);
        float v = sum_up_parts(from, parts), partner = out.two ? sum_up_parts(from + 8, parts) : 0.0f;
        float of_row = __shfl_sync(FULL, factor, row_of(k) * 4);
        out.finish(row_of(k), output_of(k), v * of_row, partner * of_row, early[k]);
      }
    }
    // Nobody makes rows where others still multiply, nor squares where others look at them.
    if (parts == 1 || apart || p.norm && own) meet();
    if (apart) finish_apart(p, l.fresh.next);
  }

  DEV float* apart_at(const Several& p, u32 stretch, u32 row, u32 output) const {
    return p.apart + (u64)(stretch * ROWS_MOST + row) * p.jobs * 16 + output;
  }
  // What a stretch of 16 outputs comes to, as the tensor cores leave it.
  DEV void leave_apart(const Several& p, u32 sub, u32 stretch, const float* acc, long long next) const {
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
      u32 row = lane % 4 * 2 + k % 2;
      float* to = apart_at(p, stretch, row, sub * 16 + lane / 4 + k / 2 * 8);
      if (row < rows) ::leave(to, acc[k], next);
      else take_out(to, next);
    }
  }
  // Adds stretches up: a block has 16 outputs, a thread one of them and a row.
  DEV void finish_apart(const Several& p, long long next) const {
    u32 row = threadIdx.x / 16, o = threadIdx.x % 16;
#pragma unroll 1
    for (u32 sub = blockIdx.x; sub < p.jobs && row < ROWS_MOST; sub += gridDim.x) {
      Outputs out(p, tile_of(p, sub / 4), sub, rows, next);
      float v[WARPS] = {}, early = out.early(row, o);
      if (row < rows) {
#pragma unroll
        for (u32 s = 0; s < WARPS; s++) v[s] = fresh_f32(apart_at(p, s, row, sub * 16 + o));
#pragma unroll
        for (u32 s = 0; s < WARPS; s++)
          while (is_nobody(v[s])) v[s] = fresh_f32(apart_at(p, s, row, sub * 16 + o));
      }
      out.finish(row, o, sum_of_parts(v), 0.0f, early);
    }
  }
};

KERNEL __launch_bounds__((WARPS + 1) * 32, 1) several(const __grid_constant__ Chain p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ __align__(128) Work b;
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 full = shared_address(b.full), empty = shared_address(b.empty), ring = shared_address(shared);
  if (threadIdx.x < p.stages) {
    mbar_init(full + 8 * threadIdx.x, 1);
    mbar_init(empty + 8 * threadIdx.x, WARP_ARRIVALS * WARPS);
  } else if (threadIdx.x >= 64 && threadIdx.x < 64 + HELD_LINKS) {
    b.links.begin(threadIdx.x - 64);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  pdl_launch_next();
  if (warp == WARPS) {
    u32 asked = 0;
    Stage base = {0, 0};
#pragma unroll 1
    for (u32 i = 0; i < p.count; i++) {
#pragma unroll 1
      for (; asked < p.count && asked < i + 2; asked++) {
        b.links.wait_empty(asked);
        if (lane == 0) b.links.bring(p, asked);
        __syncwarp();
      }
      b.links.wait(i);
      bring_weights(b.links.at[i % HELD_LINKS].product, base, ring, full, empty, p.stages, p.stage_bytes, lane);
      __syncwarp();
      b.links.done(i);
    }
  } else {
    pdl_wait();
    Walk walk = {ring, full, empty, p.stages, p.stage_bytes, lane, 1, 1, 0, 0, {0, 0}};
    Consumer c = {b, p.rows, warp, lane, ring + p.beside, 0, walk, {0, 0}};
#pragma unroll 1
    for (u32 i = 0; i < p.count; i++) {
      b.links.wait(i);
      if (lane == 0) b.link[warp] = i;
      c.link(b.links.at[i % HELD_LINKS]);
      __syncwarp();
      i = *(volatile u32*)&b.link[warp];
      if (p.times && threadIdx.x == 0) p.times[i * gridDim.x + blockIdx.x] = now();
      __syncwarp();
      b.links.done(i);
    }
  }
  // Every thread must pass here.
  pdl_wait();
}
#endif
