// A chain of launches over one row as one kernel, a block on every multiprocessor.
//
// Launches that follow each other, products and attention, are *links*: their parameters lie in memory,
// one after the other. Each block goes through all of them with the parts of products as they are
// alone: the producer brings weights of link after link into one ring, as far ahead as the ring holds,
// so that memory goes on while links wait for each other; eight warps multiply or attend; one finishes. Links
// wait for numbers (fresh.cuh). So all blocks must be on the chip at once: the launch is cooperative.
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
};
static_assert(sizeof(Link) == 2784 && sizeof(Link) % 16 == 0, "src/cuda/abi.rs mirrors it");
static_assert(sizeof(AttendShared<1>) == 5168 && sizeof(AttendShared<2>) == 7472,
              "src/cuda/abi.rs mirrors it");

// Links whose parameters are at hand at once.
constexpr u32 HELD = 5;

// All that a block has in shared memory beside pages and attention's part.
struct Block {
  Links<Link, HELD, WARPS + 2> links;
  Sums sums;
  uint4 words[WARPS][64];
  __align__(16) Page said[MAX_STAGES];
  u64 full[MAX_STAGES], empty[MAX_STAGES];
};

KERNEL __launch_bounds__(GEMV_THREADS, 1) chain(const __grid_constant__ Chain p) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ __align__(128) Block b;
  u32 warp = threadIdx.x / 32;
  if (threadIdx.x < p.stages) {
    barrier_init(b.full + threadIdx.x, 1);
    barrier_init(b.empty + threadIdx.x, WARPS);
  } else if (threadIdx.x >= 32 && threadIdx.x < 34) {
    barrier_init(b.sums.empty + threadIdx.x - 32, 32);
  } else if (threadIdx.x >= 64 && threadIdx.x < 64 + HELD) {
    b.links.begin(threadIdx.x - 64);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  pdl_launch_next();
  u32 thread = threadIdx.x;
  Ring ring = {shared, b.said, b.full, b.empty, p.stages, p.stage_bytes, 0, 0, 0};
  Turn turn;
  // What a link needs is computed for it again, from a thread that the compiler takes for another: kept for all
  // kinds at once it would not fit the registers. Three roles go through the links, each in a loop of its own:
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
    __syncwarp(); \
    if (lane == 0) b.links.done(i); \
  }
  if (warp >= WARPS) {
    if (warp == WARPS) {
      u32 asked = 0;
#pragma unroll 1
      LINKS
        // Parameters come a few links ahead.
#pragma unroll 1
        for (; asked < p.count && asked < i + 3; asked++) {
          b.links.wait_empty(asked);
          if (lane == 0) b.links.bring(p, asked);
          __syncwarp();
        }
        LINK
        if (!attends) produce<true>(link.gemv, ring, lane);
      DONE(false)
    } else {
      pdl_wait();
#pragma unroll 1
      LINKS LINK
        if (!attends) finish_chunks<true>(link.gemv, link.fresh, b.sums, turn, nullptr, lane);
      DONE(!attends)
    }
  } else {
    pdl_wait();
    u32 position = cg_u32(p.positions), slot = cg_u32(p.slots);
#define ASK(PAIRS, P) Seen<PAIRS>(P, position, slot).ask_first(P, position, (u16*)(shared + p.beside + sizeof(AttendShared<PAIRS>)), thread)
    b.links.wait(0);
    const Link& first = b.links.at[0];
    if (first.kind == ATTEND1) ASK(1, first.attend);
    if (first.kind == ATTEND2) ASK(2, first.attend);
#pragma unroll 1
    LINKS LINK
      u8* mine = shared + p.beside;
      // The cache was there before the step: what the next link sees of it is on its way while this one waits.
      if (i + 1 < p.count) {
        b.links.wait(i + 1);
        const Link& next = b.links.at[(i + 1) % HELD];
        if (next.kind == ATTEND1) ASK(1, next.attend);
        if (next.kind == ATTEND2) ASK(2, next.attend);
      }
#define CONSUME(...) consume<__VA_ARGS__, true>(link.gemv, link.fresh, ring, b.sums, turn, b.words[warp], thread)
  // Of long rows a warp may have twice as many columns at a time: fewer passes.
#define PLANES(LO, HI) \
  if (link.gemv.wide > 8) CONSUME(Planes<LO, HI, 2>); \
  else CONSUME(Planes<LO, HI>)
#define ATTEND(PAIRS) \
  attend_one<PAIRS, true>(link.attend, link.fresh, position, slot, *(AttendShared<PAIRS>*)mine, mine + sizeof(AttendShared<PAIRS>), thread)
      switch (link.kind) {
        case L8: CONSUME(Planes<8, 0>); break;
        case L4: PLANES(4, 0); break;
        case L2: PLANES(2, 0); break;
        case L1: PLANES(1, 0); break;
        case L21: PLANES(2, 1); break;
        case L41: CONSUME(Planes<4, 1>); break;
        case L42: CONSUME(Planes<4, 2>); break;
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
