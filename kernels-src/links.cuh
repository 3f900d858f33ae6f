// Launches that follow each other as one kernel: their parameters lie in memory, one after the other, and come to
// each block a few ahead.
#pragma once
#include "fresh.cuh"
#include "wgmma.cuh"

#if HOPPER
// Planes by their bits, floats; of one row attention by its pairs as well.
enum LinkKind : u32 { L8, L4, L2, L1, L21, L41, L42, LF32, LF16, LBF16, ATTEND1, ATTEND2 };

struct Chain {
  // As many as `count`, of what the kernel takes.
  const void* links;
  const u32 *positions, *slots;
  // When each link ended in each block, if not null.
  u64* times;
  // What is not the ring begins at `beside` in shared memory; rows of the step.
  u32 count, stages, stage_bytes, beside, rows, unused;
};
static_assert(sizeof(Chain) == 56, "src/cuda/abi.rs mirrors it");

// Parameters at hand in shared memory, `HELD` links at once; `READERS` warps are done with each.
template <class Link, u32 HELD, u32 READERS>
struct Links {
  Link at[HELD];
  u64 full[HELD], empty[HELD];
  DEV void begin(u32 i) {
    mbar_init(shared_address(full + i), 1);
    mbar_init(shared_address(empty + i), WARP_ARRIVALS * READERS);
  }
  DEV void bring(const Chain& p, u32 i) {
    u32 there = shared_address(full + i % HELD);
    mbar_expect(there, sizeof(Link));
    bulk_copy(shared_address(at + i % HELD), (const Link*)p.links + i, sizeof(Link), there);
  }
  DEV void wait(u32 i) { mbar_wait(shared_address(full + i % HELD), i / HELD & 1); }
  // For whoever asks: until all are done with what was in its place.
  DEV void wait_empty(u32 i) {
    if (i >= HELD) mbar_wait(shared_address(empty + i % HELD), i / HELD + 1 & 1);
  }
  // A warp is.
  DEV void done(u32 i) { mbar_arrive_warp(shared_address(empty + i % HELD)); }
};

DEV u64 now() {
  u64 t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
#endif
