// What a chain of products over several rows is given, and how weights come through its ring: who has which pages, who asks
// for them, who waits.
#pragma once
#include "few90.cuh"
#include "links.cuh"

#if HOPPER
struct Several {
  const float* x;
  // Weights of the norm before the product; null for none.
  const float* norm;
  float eps;
  // Columns of a row, whole blocks of 128; floats from a row to the next; parts of the columns that warps have, and the
  // stretches of each, powers of two as `subs` is.
  u32 cols, stride, parts, each;
  // Jobs of 16 outputs times `subs`, and the block that has the first of them; whether each part has spans of its
  // own, and so each warp pages of its own; where sums of rows are behind those, 0 if nothing is added to weights; spans of a
  // page, a power of two.
  u32 jobs, subs, first_block, alone, domains, sums, paged;
  // If blocks have a stretch each, and not warps: what stretches come to, `[stretch][row][output]`. Eight jobs that follow each
  // other are then the stretches of 16 outputs a warp.
  float* apart;
  u32 first[MAX_DOMAINS + 1];
  Domain domain[MAX_DOMAINS];
  Matrix part[2 * MAX_DOMAINS];
};
struct SeveralLink {
  u32 kind, unused;
  Fresh fresh;
  Several product;
};
static_assert(sizeof(SeveralLink) == 2800 && sizeof(SeveralLink) % 16 == 0, "src/cuda/abi.rs mirrors it");

// Depth of a ring. Rows at most; blocks of 128 columns at most where there is a norm; floats from a row of sums to the next.
constexpr u32 MAX_STAGES = 32, ROWS_MOST = 8, NORM_BLOCKS = 64, SUMS_WIDTH = 20, HELD_LINKS = 3;

// A place in the ring, and how often it went round.
struct Stage {
  u32 at, parity;
  DEV void step(u32 n, u32 stages) {
    at += n;
    while (at >= stages) at -= stages, parity ^= 1;
  }
};

// Who has pages of their own, spans in a row: warps, or the parts of 16 outputs together. Pages of all come in turn.
struct Owners {
  u32 count, spans, pages;
  DEV explicit Owners(const Several& p) {
    count = p.alone ? p.subs * p.parts : p.subs;
    spans = p.alone ? p.part[0].spans >> log_of(p.parts) : p.part[0].spans;
    pages = spans + p.paged - 1 >> log_of(p.paged);
  }
};
// What of a job is a warp's: 16 outputs, and a part of the columns.
struct Part {
  u32 sub, part;
  DEV Part(const Several& p, u32 job, u32 warp) {
    u32 log = log_of(p.parts);
    sub = p.apart ? job / WARPS * WARPS + warp : job * p.subs + (warp >> log);
    part = p.apart ? job % WARPS : warp & p.parts - 1;
  }
};
// A block's first job, and how far it is to its next one: all of a block's are of one stretch, if blocks have one each.
DEV u32 next_job(const Several& p) { return p.apart ? gridDim.x / WARPS * WARPS : gridDim.x; }
DEV u32 first_job(const Several& p) {
  u32 job = blockIdx.x - p.first_block + (blockIdx.x < p.first_block ? gridDim.x : 0);
  return job < next_job(p) ? job : p.jobs;
}

// Asks for all weights of a link's jobs: a page is spans of four panels, 16 outputs. Four lanes ask for one.
DEV void bring_weights(const Several& p, Stage& base, u32 ring, u32 full, u32 empty, u32 stages, u32 stage_bytes,
                       u32 lane) {
  Owners owners(p);
  u32 pages = owners.pages * owners.count, all_spans = p.part[0].spans;
  u32 which = lane / 4, side = lane / 2 % 2, half = lane % 2, turn = log_of(owners.count), owner = which & owners.count - 1;
#pragma unroll 1
  for (u32 job = first_job(p); job < p.jobs; job += next_job(p)) {
    Part part(p, job, owner);
    u32 sub = p.alone ? part.sub : job * p.subs + owner, begins = p.alone ? part.part * owners.spans : 0;
    Tile tile = tile_of(p, sub / 4);
    const Domain& d = p.domain[tile.domain];
    u32 output = tile.first + (d.parts == 1 ? sub % 4 * 16 + side * 8 : sub % 4 * 8) + half * PANEL;
    if (output >= tile.outputs) output = 0;
    const Matrix& m = p.part[d.part[d.parts == 1 ? 0 : side]];
    u32 span = begins + (which >> turn) * p.paged, ends = begins + owners.spans;
    u32 steps = (WARPS >> turn) * p.paged;
    u32 whole = m.span_bytes, rest = m.panel_bytes - (all_spans - 1) * whole;
    const u8* from = m.data + (u64)(output / PANEL) * m.panel_bytes + (u64)span * whole;
    Stage mine = base;
    mine.step(which, stages);
#pragma unroll 1
    for (u32 first = 0; first < pages; first += WARPS) {
      u32 n = min(p.paged, ends - span), bytes = n * whole - (span + n < all_spans ? 0 : whole - rest);
      u32 all = bytes + __shfl_xor_sync(FULL, bytes, 1);
      all += __shfl_xor_sync(FULL, all, 2);
      // Four pages at once: a ring has as many stages or more.
#pragma unroll
      for (u32 four = 0; four < 2; four++) {
        bool on = which / 4 == four && span < ends;
        if (on) {
          mbar_wait(empty + 8 * mine.at, mine.parity ^ 1);
          if (lane % 4 == 0) mbar_expect(full + 8 * mine.at, all);
        }
        __syncwarp();
        if (on)
          bring_once(ring + mine.at * stage_bytes + (side * 2 + half) * (stage_bytes / 4), from, bytes, full + 8 * mine.at);
      }
      span += steps, from += (u64)steps * whole;
      mine.step(WARPS, stages);
    }
    base.step(pages, stages);
  }
}

// The pages of a warp within a job: of its 16 outputs.
struct Walk {
  u32 ring, full, empty, stages, stage_bytes, lane;
  // Arrivals of this warp, of eight for a page; pages from one of its own to the next.
  u32 arrivals, step;
  // The first span of all, and which page is next.
  u32 begins, at;
  Stage stage;
  DEV void wait() const {
    // A barrier tells neighbouring phases apart, no more: first until whoever had the place before is done with it.
    mbar_wait(empty + 8 * stage.at, stage.parity ^ 1);
    mbar_wait(full + 8 * stage.at, stage.parity);
  }
  DEV void next() {
    // A page is done with after eight arrivals of every lane, however many warps read it.
    mbar_arrive(empty + 8 * stage.at, arrivals);
    at++;
    stage.step(step, stages);
  }
  // Where page `to` is.
  DEV u32 page(u32 to) {
    while (at < to) wait(), next();
    wait();
    return ring + stage.at * stage_bytes;
  }
  DEV void end(u32 pages) {
    while (at < pages) wait(), next();
  }
};
#endif
