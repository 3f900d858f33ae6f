// A product of one row: what it is given, and the ring that its weights come through.
#pragma once
#include "barrier.cuh"
#include "epilogue.cuh"
#include "layout.cuh"

struct Domain {
  u32 parts;
  u32 part[2];
  // Whether its parts lie in memory alike.
  u32 alike;
  Epilogue epilogue;
};

struct Gemv {
  const float* x;
  // Weights of the norm that is the prologue; null for none.
  const float* norm;
  float eps;
  // Bytes of the ring, if the launch is no link; panels that each block has at least: the last blocks have one more, since
  // the first ones attend.
  u32 cols, domains, ring, each;
  // Warps that share a panel, as a power of two; panels of a page; how often the columns are gone
  // through, and how many units a warp has each time.
  u32 team, batch, passes, wide;
  // Of a link: cycles from KiB to KiB of its weights, 0 where they are asked for at once; whether its row comes as integers, and
  // whether it leaves its own so: then each block has whole chunks of panels.
  u32 pace, takes_integers, leaves_integers;
  // Panels before each domain; the last entry counts all.
  u32 first[MAX_DOMAINS + 1];
  Domain domain[MAX_DOMAINS];
  Matrix part[2 * MAX_DOMAINS];
};
static_assert(sizeof(Gemv) == 2768, "src/cuda/abi.rs mirrors it");

// Panels that are added up at a time; pages at most that are on their way or read.
constexpr u32 CHUNK = 8;
constexpr u32 PAGES = 16;
// Of a link's weights that are not asked for at once: bytes that are, or up to half as many more, and cycles that may be
// made up for.
constexpr u32 PIECE = 8 << 10, LATE = 2048;
// Partial sums of a panel, one after the other: of two parts, of the warps of a team.
constexpr u32 NEXT_PANEL = 2 * WARPS * PANEL;
constexpr u32 GEMV_THREADS = (WARPS + 2) * 32;

// Weights pass through the second-level cache once a step, and must not push out what is small and
// needed every step: norms, caches, parameters, the kernels' own code.
DEV u64 once() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
#if HOPPER
// So many bytes of weights, a multiple of 16, to shared memory; the barrier `full` counts them.
DEV void bring_once(u32 to, const void* from, u32 bytes, u32 full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(full), "l"(once())
      : "memory");
}
#endif

// What the producer says of a page: bytes and number of its slices, where their sums go, and what is
// to be done with it.
struct Page {
  // Where it is in the ring, a multiple of 128, and the number.
  u32 slice, place, to, what;
  DEV u32 n() const { return place % 128; }
};
// The page begins or ends a chunk, or ends all; above it stand the pass and the matrix.
enum Ends : u32 { BEGINS = 1, ENDS = 2, ENDS_ALL = 4 };
constexpr u32 PASS = 8, MATRIX = 24;

// Pages in shared memory, one behind the other, each of as many bytes as it needs.
struct Ring {
  u8* bytes;
  Page* said;
  u64 *full, *empty;
  u32 at, parity;
  DEV void next() {
    at = (at + 1) % PAGES;
    if (at == 0) parity ^= 1;
  }
  DEV Page page() const {
    mbar_wait(shared_address(full + at), parity);
    return said[at];
  }
  DEV u8* there(const Page& page) const { return bytes + page.place / 128 * 128; }
  // A warp is through with the page.
  DEV void done() {
    mbar_arrive_warp(shared_address(empty + at));
    next();
  }
};
DEV u32 cycles() {
  u32 t;
  asm volatile("mov.u32 %0, %clock;" : "=r"(t));
  return t;
}
// Whoever fills a ring, a warp: pages that it has asked for, and the oldest that may not be free; where the next one
// goes, and bytes in all up to there, with what was left at the ring's end; when it may ask again.
struct Filling {
  Ring ring;
  u32 size, lane, pages, oldest, head, all, begin, written, due;
  DEV Filling(Ring ring, u32 size, u32 lane)
      : ring(ring), size(size), lane(lane), pages(0), oldest(0), head(0), all(0), begin(0), written(0), due(cycles()) {}
  DEV u64* full() const { return ring.full + ring.at; }
  // Room for so many bytes, which threads write if not bulk copies; what has none at once is `late`.
  template <class Late>
  DEV u32 room(u32 bytes, bool threads, Late late) {
    bytes = (bytes + 127) / 128 * 128;
    if (head + bytes > size) all += size - head, head = 0;
    // Each of the first lanes knows where a page begins.
    while (oldest != pages && (pages - oldest == PAGES || all + bytes - __shfl_sync(FULL, begin, oldest % PAGES) > size)) {
      late();
      mbar_wait(shared_address(ring.empty + oldest % PAGES), oldest / PAGES % 2);
#if HOPPER
      // Bulk copies come after what threads wrote there, if they did.
      if (written >> oldest % PAGES & 1) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
      oldest++;
    }
    if (lane == pages % PAGES) begin = all;
    written = written & ~(1u << pages % PAGES) | (threads ? 1u << pages % PAGES : 0);
    u32 at = head;
    head += bytes, all += bytes, pages++;
    return at;
  }
#if HOPPER
  // By one lane: so many bytes of weights, in pieces. All of a ring's pages asked for as fast as one can ask stand before
  // the numbers that other blocks wait for, for a microsecond and more.
  DEV void bring(u32 to, const u8* from, u32 bytes, u32 full, u32 pace) {
    if (pace == 0) return bring_once(to, from, bytes, full);
#pragma unroll 1
    for (u32 n; bytes; bytes -= n, to += n, from += n) {
      // What would be left is not worth asking for by itself.
      n = bytes < PIECE + PIECE / 2 ? bytes : PIECE;
      u32 now;
      do now = cycles();
      while ((int)(due - now) > 0);
      bring_once(to, from, n, full);
      due = ((int)(now - due) > (int)LATE ? now - LATE : due) + n * pace / 1024;
    }
  }
#endif
};

// A block's stretch of all panels, in chunks: of each the passes over the columns, its stretches of
// domains, pages, parts.
struct Stretch {
  u32 begin, end;
  DEV explicit Stretch(const Gemv& p) {
    u32 step = p.leaves_integers ? CHUNK : 1, fewer = gridDim.x - (p.first[p.domains] / step - p.each * gridDim.x);
    begin = step * (p.each * blockIdx.x + (blockIdx.x > fewer ? blockIdx.x - fewer : 0));
    end = begin + step * (p.each + (blockIdx.x >= fewer ? 1 : 0));
  }
};
// Whether a link's norm comes through the ring, a page before its panels: it is read once, if there is one pass.
DEV bool norm_comes(const Gemv& p) { return p.norm && p.passes == 1; }
DEV u32 domain_of(const Gemv& p, u32 panel) {
  u32 d = 0;
  while (panel >= p.first[d + 1]) d++;
  return d;
}

// Bytes of a pass over a panel: of the spans that the warps of a team have units for.
DEV u32 slice_bytes(const Gemv& p, const Matrix& m) {
  return p.passes == 1 ? m.panel_bytes : (p.wide << p.team) / span_size(m) * m.span_bytes;
}

template <bool CHAIN>
DEV void produce(const Gemv& p, Filling& filling) {
  u32 passes = p.passes, batch = p.batch, lane = filling.lane;
  Ring& ring = filling.ring;
  bool told = false;
  // All that can be asked for ahead is: the next kernel may ask.
  auto tell = [&]() {
    if (!CHAIN && !told) pdl_launch_next();
    told = true;
  };
  // Slices of `n` panels, one page.
  auto bring = [&](const u8* src, u32 bytes, u32 panel, u32 n, Page said) {
    u32 slice = said.slice, at = filling.room(n * slice, false, tell);
    u64* full = filling.full();
    said.place = at | n;
    if (lane == 0) ring.said[ring.at] = said;
    // Whole panels are one piece.
    if (slice == panel) bytes *= n, n = 1;
    u32 to = shared_address(ring.bytes) + at;
#if HOPPER
    if (lane == 0) {
      mbar_expect(shared_address(full), bytes * n);
#pragma unroll 1
      for (u32 k = 0; k < n; k++) filling.bring(to + k * slice, src + k * panel, bytes, shared_address(full), CHAIN ? p.pace : 0);
    }
#else
#pragma unroll 1
    for (u32 k = 0; k < n; k++)
#pragma unroll 1
      for (u32 b = lane * 16; b < bytes; b += 512)
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to + k * slice + b),
                     "l"(src + k * panel + b), "l"(once())
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(full)) : "memory");
    if (lane == 0) mbar_arrive(shared_address(full));
#endif
    ring.next();
  };
  Stretch mine(p);
  if (CHAIN && norm_comes(p) && mine.begin < mine.end) bring((const u8*)p.norm, p.cols * 4, 0, 1, {p.cols * 4, 0, 0, 0});
#pragma unroll 1
  for (u32 chunk = mine.begin; chunk < mine.end; chunk += CHUNK) {
    u32 stop = min(mine.end, chunk + CHUNK);
#pragma unroll 1
    for (u32 pass = 0; pass < passes; pass++) {
#pragma unroll 1
      for (u32 i = chunk; i < stop;) {
        u32 d = domain_of(p, i), until = min(stop, p.first[d + 1]), parts = p.domain[d].parts;
        u32 index0 = p.domain[d].part[0], index1 = p.domain[d].alike ? index0 : p.domain[d].part[parts - 1];
        const Matrix &m0 = p.part[p.domain[d].part[0]], &m1 = p.part[p.domain[d].part[parts - 1]];
        u32 panel0 = m0.panel_bytes, panel1 = m1.panel_bytes;
        u32 slice0 = slice_bytes(p, m0), slice1 = slice_bytes(p, m1);
        const u8* at0 = m0.data + (u64)(i - p.first[d]) * panel0 + pass * slice0;
        const u8* at1 = m1.data + (u64)(i - p.first[d]) * panel1 + pass * slice1;
        // The last pass has what is left.
        u32 bytes0 = min(slice0, panel0 - pass * slice0), bytes1 = min(slice1, panel1 - pass * slice1);
#pragma unroll 1
        while (i < until) {
          u32 n = min(batch, until - i), to = (i - chunk) * NEXT_PANEL;
          u32 begins = i == chunk && pass == 0 ? BEGINS : 0;
          u32 ends = i + n < stop || pass + 1 < passes ? 0 : stop < mine.end ? ENDS : ENDS | ENDS_ALL;
          if (parts == 2) {
            bring(at0, bytes0, panel0, n, {slice0, 0, to, begins | pass << PASS | index0 << MATRIX});
            bring(at1, bytes1, panel1, n, {slice1, 0, to + WARPS * PANEL, ends | pass << PASS | index1 << MATRIX});
          } else {
            bring(at0, bytes0, panel0, n, {slice0, 0, to, begins | ends | pass << PASS | index0 << MATRIX});
          }
          at0 += n * panel0;
          at1 += n * panel1;
          i += n;
        }
      }
    }
  }
  if (CHAIN) return;
  tell();
  pdl_wait();
}
