// A chain of launches over one row as one kernel, a block on every multiprocessor.
//
// Launches that follow each other, products and attention, are *links*: their parameters lie in memory,
// one after the other. Each block goes through all of them with the parts of products as they are
// alone: the producer brings weights of link after link into one ring, as far ahead as the ring holds,
// so that memory goes on while links wait for each other; eight warps multiply or attend; one finishes, and one
// brings what is in the cache. Links wait for numbers (fresh.cuh). So all blocks must be on the chip at once: the launch
// is cooperative.
#include "attend_one.cuh"
#include "gemv.cuh"
#include "links.cuh"

#if HOPPER
struct Link {
  u32 kind, unused;
  Fresh fresh;
  union {
    Gemv gemv;
    AttendOne attend;
  };
  // As long as a link of several rows.
  u64 unused2;
};
static_assert(sizeof(Link) == 2800 && sizeof(Link) % 16 == 0, "src/cuda/abi.rs mirrors it");

// Links whose parameters are at hand at once.
constexpr u32 HELD = 6;
constexpr u32 CHAIN_THREADS = GEMV_THREADS + 32;

// All that a block has in shared memory beside the ring.
struct Block {
  Links<Link, HELD, WARPS + 3> links;
  Sums sums;
  uint4 words[WARPS][64];
  __align__(16) Page said[PAGES];
  u64 full[PAGES], empty[PAGES];
  // Of each attention at hand: whether it has room, and the first of its pages.
  u64 placed[HELD];
  u32 first_page[HELD];
};

// What attention has in the ring: a page of what the block sees of the cache and, if it sees some, of its own part; then
// a page of keys and values for each chunk that there is room for, or of sums in their place.
template <u32 PAIRS>
struct __align__(128) AttendPage {
  Seen seen;
  __align__(128) AttendShared<PAIRS> own;
};
static_assert(sizeof(AttendPage<1>) == 5376 && sizeof(AttendPage<2>) == 7680, "src/cuda/abi.rs mirrors it");
// Who has all the ring's pages to give has these, too; where they are is for the warp that fills them.
template <u32 PAIRS>
DEV void find_room(const AttendOne& p, Filling& filling, u32 position, u32 slot) {
  Ring& ring = filling.ring;
  Seen seen(p, position, slot);
  u32 chunks = seen.chunks(p), bytes = chunks ? sizeof(AttendPage<PAIRS>) : sizeof(Seen);
#pragma unroll 1
  for (u32 page = 0;; page++) {
    u32 at = filling.room(bytes, true, []() {});
    if (filling.lane == 0) {
      if (page == 0) *(Seen*)(ring.bytes + at) = seen;
      ring.said[ring.at].place = at;
    }
    ring.next();
    if (page == chunks) break;
    // No more than the warps' positions up to the newest, if no other chunk follows in its place.
    u32 base = (seen.begin + page) * p.chunk, all = (position - base) / TILE * TILE + TILE;
    bytes = 2 * (seen.end - seen.begin > p.buffers ? p.chunk : min(p.chunk, all)) * AttendShared<PAIRS>::LINE;
    if (page == 0) bytes = max(bytes, 4 * p.taken * AttendShared<PAIRS>::HEAD_SUMS);
  }
}
// The cache was there before the step: it is on its way while links before this one wait.
template <u32 PAIRS>
DEV void bring_cache(const AttendOne& p, Ring ring, u32 position, u32 lane) {
  auto there = [&]() {
    __syncwarp();
    if (lane == 0) mbar_arrive(shared_address(ring.full + ring.at));
    ring.next();
  };
  // Read by the lane that arrives: racecheck takes others for readers whom nobody waits for (barrier.cuh).
  Seen seen;
  const u32* page = (const u32*)(ring.bytes + ring.said[ring.at].place);
#pragma unroll
  for (u32 i = 0; i < sizeof(Seen) / 4; i++) ((u32*)&seen)[i] = __shfl_sync(FULL, lane == 0 ? page[i] : 0, 0);
  there();
  Ring asked = ring;
  u32 chunks = seen.chunks(p);
#pragma unroll 1
  for (u32 c = 0; c < chunks; c++, asked.next())
    seen.ask<PAIRS, 32>(p, position, seen.begin + c, (u16*)(ring.bytes + ring.said[asked.at].place), lane);
  // There are two at most.
  if (chunks == 2) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    there();
  }
  if (chunks) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    there();
  }
}
// Where tiles are: pages behind attention's first.
struct Chained {
  static constexpr bool CHAIN = true;
  const Ring& ring;
  DEV u32 page(u32 buffer) const { return (ring.at + 1 + buffer) % PAGES; }
  DEV u16* of(u32 buffer) const { return (u16*)(ring.bytes + ring.said[page(buffer)].place); }
  DEV void wait(u32 buffer) const {
    mbar_wait(shared_address(ring.full + page(buffer)), ring.parity ^ (ring.at + 1 + buffer >= PAGES ? 1 : 0));
  }
};

KERNEL __launch_bounds__(CHAIN_THREADS, 1) chain(const __grid_constant__ Chain p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ __align__(128) Block b;
  u32 warp = threadIdx.x / 32;
  if (threadIdx.x < PAGES) {
    mbar_init(shared_address(b.full + threadIdx.x), 1);
    mbar_init(shared_address(b.empty + threadIdx.x), WARP_ARRIVALS * WARPS);
  } else if (threadIdx.x >= 32 && threadIdx.x < 34) {
    b.sums.begin(threadIdx.x - 32);
  } else if (threadIdx.x >= 64 && threadIdx.x < 64 + HELD) {
    b.links.begin(threadIdx.x - 64);
    mbar_init(shared_address(b.placed + threadIdx.x - 64), 1);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  pdl_launch_next();
  u32 thread = threadIdx.x;
  Ring ring = {shared, b.said, b.full, b.empty, 0, 0};
  Turn turn;
  // What a link needs is computed for it again, from a thread that the compiler takes for another: kept for all
  // kinds at once it would not fit the registers. Four roles go through the links, each in a loop of its own:
  // LINKS begins it, LINK waits for the link's parameters, DONE gives their place back and ends the loop.
#define LINKS \
  for (u32 i = 0; i < p.count; i++) { \
    asm volatile("" : "+r"(thread)); \
    u32 lane = thread % 32;
#define LINK \
    b.links.wait(i); \
    const Link& link = b.links.at[i % HELD]; \
    bool attends = link.kind >= ATTEND1;
#define DONE(CLOCKS) \
    if (p.times && lane == 0 && (CLOCKS)) p.times[i * gridDim.x + blockIdx.x] = now(); \
    b.links.done(i); \
  }
  if (warp >= WARPS) {
    if (warp == WARPS) {
      u32 asked = 0, attended = 0, position = 0, slot = 0;
      bool known = false;
      Filling filling(ring, p.beside, thread % 32);
#pragma unroll 1
      LINKS
        // Parameters come a few links ahead.
#pragma unroll 1
        for (; asked < p.count && asked < i + 2; asked++) {
          b.links.wait_empty(asked);
          if (lane == 0) b.links.bring(p, asked);
          __syncwarp();
        }
        LINK
        if (!attends) {
          produce<true>(link.gemv, filling);
        } else {
          // Weights are there before the launches before this one are done; position and cache are not.
          if (!known) pdl_wait(), position = cg_u32(p.positions), slot = cg_u32(p.slots);
          known = true;
          if (lane == 0) b.first_page[attended % HELD] = filling.ring.at;
          if (link.kind == ATTEND1) find_room<1>(link.attend, filling, position, slot);
          else find_room<2>(link.attend, filling, position, slot);
          __syncwarp();
          if (lane == 0) mbar_arrive(shared_address(b.placed + attended % HELD));
          attended++;
        }
      DONE(false)
    } else if (warp == WARPS + 1) {
      pdl_wait();
#pragma unroll 1
      LINKS LINK
        if (!attends) finish_chunks<true>(link.gemv, link.fresh, b.sums, turn, nullptr, lane);
      DONE(!attends)
    } else {
      pdl_wait();
      u32 attended = 0, position = cg_u32(p.positions);
#pragma unroll 1
      LINKS LINK
        if (attends) {
          mbar_wait(shared_address(b.placed + attended % HELD), attended / HELD & 1);
          ring.at = b.first_page[attended % HELD];
          attended++;
          if (link.kind == ATTEND1) bring_cache<1>(link.attend, ring, position, lane);
          else bring_cache<2>(link.attend, ring, position, lane);
        }
      DONE(false)
    }
  } else {
    pdl_wait();
    u32 position = cg_u32(p.positions);
#pragma unroll 1
    LINKS LINK
#define CONSUME(...) consume_either<__VA_ARGS__, true>(link.gemv, link.fresh, ring, b.sums, turn, b.words[warp], thread)
  // Of long rows a warp may have four times as many columns at a time, if they come as integers, or twice: fewer passes.
#define OR_INTEGERS(LO, HI) \
  if (link.gemv.takes_integers) CONSUME(Rounded<Planes<LO, HI, 4>>); \
  else CONSUME(Planes<LO, HI>)
#define OR_TWICE(LO, HI) \
  if (link.gemv.takes_integers) CONSUME(Rounded<Planes<LO, HI, 4>>); \
  else if (link.gemv.wide > 8) CONSUME(Planes<LO, HI, 2>); \
  else CONSUME(Planes<LO, HI>)
#define ATTEND(PAIRS) \
  { \
    auto& page = *(AttendPage<PAIRS>*)ring.there(ring.page()); \
    Seen seen = page.seen; \
    attend_one<PAIRS>(link.attend, link.fresh, position, seen, page.own, Chained{ring}, thread); \
    for (u32 k = 0, n = seen.chunks(link.attend); k <= n; k++) ring.done(); \
  }
      switch (link.kind) {
        case L8: OR_INTEGERS(8, 0); break;
        case L4: OR_TWICE(4, 0); break;
        case L2: OR_TWICE(2, 0); break;
        case L1: OR_TWICE(1, 0); break;
        case L21: OR_TWICE(2, 1); break;
        case L41: OR_INTEGERS(4, 1); break;
        case L42: OR_INTEGERS(4, 2); break;
        case LF32: CONSUME(Floats<F32>); break;
        case LF16: CONSUME(Floats<F16>); break;
        case LBF16: CONSUME(Floats<BF16>); break;
        case ATTEND1: ATTEND(1); break;
        default: ATTEND(2);
      }
    DONE(attends && warp == 0)
  }
  // Every thread must pass here.
  pdl_wait();
}
#endif
