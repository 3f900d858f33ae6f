// What only sm_90a has: matrix products of a warpgroup (four warps), whose left side is in registers and
// whose right side and completion are in shared memory; clusters of blocks.
#pragma once
#include "barrier.cuh"

#if HOPPER
// Rows of a tile of the left side; inputs of one instruction.
constexpr u32 WG_M = 64, WG_K = 16;

DEV void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `LEFT` groups are on their way.
template <int LEFT>
DEV void wg_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// Registers that a product on its way reads keep their values up to here.
DEV void wg_keep(u32& r) { asm volatile("" : "+r"(r)::"memory"); }
DEV void wg_keep(float& r) { asm volatile("" : "+f"(r)::"memory"); }

// Where the right side of a product is and how it lies. Its upper half is known while compiling, or the same for all of a launch.
struct WgRows {
  u32 lower, upper;
  DEV WgRows on(u32 bytes) const { return {lower + bytes / 16, upper}; }
};
// Rows of 64 inputs (128 bytes, their 16-byte pieces permuted by the row's number modulo 8) in groups
// of eight, `stride` bytes from one group to the next; groups begin at multiples of 1,024 bytes.
DEV WgRows wg_tile(u32 address, u32 stride) { return {(address & 0x3ffff) >> 4 | 1 << 16, stride >> 4 | 1 << 30}; }
// Rows of 16 inputs as two matrices of eight rows by 16 bytes, `next` bytes apart, and `stride` bytes from one group of eight
// rows to the next.
DEV WgRows wg_plain(u32 address, u32 next, u32 stride) { return {(address & 0x3ffff) >> 4 | next >> 4 << 16, stride >> 4}; }

// acc[64 x N] += a[64 x 16] b[16 x N], in bf16 with f32 sums; from zero if FIRST.
template <u32 N>
struct WgProduct;
template <>
struct WgProduct<32> {
  template <bool FIRST = false>
  static DEV void add(float* c, const u32* a, WgRows b) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 d;\nsetp.eq.u32 p, %22, 0;\nmov.b64 d, {%20, %21};\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, d, p, 1, 1, 0;\n}"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.lower), "r"(b.upper), "n"((u32)FIRST));
  }
};
template <>
struct WgProduct<64> {
  template <bool FIRST = false>
  static DEV void add(float* c, const u32* a, WgRows b) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 d;\nsetp.eq.u32 p, %38, 0;\nmov.b64 d, {%36, %37};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, d, p, 1, 1, 0;\n}"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.lower), "r"(b.upper), "n"((u32)FIRST));
  }
};
template <>
struct WgProduct<128> {
  template <bool FIRST = false>
  static DEV void add(float* c, const u32* a, WgRows b) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 d;\nsetp.eq.u32 p, %70, 0;\nmov.b64 d, {%68, %69};\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, d, p, 1, 1, 0;\n}"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
          "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
          "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
          "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
          "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
          "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
          "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.lower), "r"(b.upper), "n"((u32)FIRST));
  }
};

// All threads of all blocks of a cluster meet, and see what the others wrote before: who arrives waits for what it asked memory for.
DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
// Arrives without having written what others should see.
DEV void cluster_leave() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// What lies at our address `at` in the shared memory of block `rank` of the cluster.
DEV float4 cluster_read(u32 at, u32 rank) {
  u32 there;
  float4 v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(there)
               : "memory");
  return v;
}
#endif
