// Barriers in shared memory that count arrivals, and on sm_90 bytes; what brings those.
#pragma once
#include "common.cuh"

DEV void mbar_init(u32 at, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
DEV void mbar_arrive(u32 at) {
  asm volatile("{\n.reg .b64 before;\nmbarrier.arrive.shared::cta.b64 before, [%0];\n}" ::"r"(at) : "memory");
}
// Arrives for a warp that is through with a place, so many times. On sm_90 each lane does: if they meet and send one, racecheck takes
// the others for readers whom nobody waits for, and it is no faster. Before, arrivals are atomics, one after the other.
constexpr u32 WARP_ARRIVALS = HOPPER ? 32 : 1;
DEV void mbar_arrive_warp(u32 at) {
#if HOPPER
  mbar_arrive(at);
#else
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbar_arrive(at);
#endif
}
// Arrives; whether it was the last that was waited for.
DEV bool mbar_arrive_last(u32 at) {
  u32 left;
  asm volatile(
      "{\n.reg .b64 before;\nmbarrier.arrive.shared::cta.b64 before, [%1];\n"
      "mbarrier.pending_count.b64 %0, before;\n}" : "=r"(left) : "r"(at)
      : "memory");
  return left == 1;
}
DEV void mbar_wait(u32 at, u32 parity) {
#if HOPPER
#define TRY "mbarrier.try_wait.parity"
#else
#define TRY "mbarrier.test_wait.parity"
#endif
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n" TRY
      ".shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(at), "r"(parity)
      : "memory");
#undef TRY
}
#if HOPPER
// Arrives so many times.
DEV void mbar_arrive(u32 at, u32 times) {
  asm volatile("{\n.reg .b64 before;\nmbarrier.arrive.shared::cta.b64 before, [%0], %1;\n}" ::"r"(at), "r"(times) : "memory");
}
// Arrives, and so many bytes are still to come.
DEV void mbar_expect(u32 at, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
// So many bytes, a multiple of 16, to shared memory; `full` counts them.
DEV void bulk_copy(u32 to, const void* from, u32 bytes, u32 full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(full)
      : "memory");
}
#endif
