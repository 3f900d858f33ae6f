// Rows times the weights of the experts that they picked.
//
// A block has one pick of one row, and some of the panels of that expert; which expert is read on
// the device. Weights come straight from memory, many warps at a time. A pick's bits do not depend
// on what stands beside it, in steps of one row or of many.
#include "epilogue.cuh"
#include "spans.cuh"

constexpr u32 MAX_PARTS = 4;

struct Experts {
  const float* x;
  const u32* ids;
  float* out;
  // Elements from a row to the next, and from a pick to the next (0 where picks share a row).
  u32 x_row, x_pick, id_row, picks, out_row, out_pick;
  u32 cols, experts, parts, unused;
  // Bytes of an expert of each part.
  u64 bytes[MAX_PARTS];
  // Columns of the result before each part; panels before each, the last entry counts all.
  u32 column[MAX_PARTS], first[MAX_PARTS + 1], unused2;
  Matrix part[MAX_PARTS];
};
static_assert(sizeof(Experts) == 456, "src/cuda/abi.rs mirrors it");

template <class F>
DEV void experts(const Experts& p) {
  extern __shared__ __align__(128) u8 row_of_pick[];
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 row = blockIdx.x / p.picks, pick = blockIdx.x % p.picks;
  pdl_launch_next();
  pdl_wait();
  u32 expert = cg_u32(p.ids + (u64)row * p.id_row + pick);
  const float* x = p.x + (u64)row * p.x_row + pick * p.x_pick;
  float* out = p.out + (u64)row * p.out_row + pick * p.out_pick;
  // An expert that is not there gives zeros.
  bool there = expert < p.experts;
  u32 units = p.part[0].units, all = (units * F::UNIT + 3) / 4;
  for (u32 base = 0; there && base < all; base += WARPS * 32) {
    u32 q = base + threadIdx.x, c = q * 4;
    float4 v = make_float4(0, 0, 0, 0);
    if (c < p.cols) v.x = cg_f32(x + c);
    if (c + 1 < p.cols) v.y = cg_f32(x + c + 1);
    if (c + 2 < p.cols) v.z = cg_f32(x + c + 2);
    if (c + 3 < p.cols) v.w = cg_f32(x + c + 3);
    F::put_quad(row_of_pick, units, q, all, v, lane);
  }
  __syncthreads();
  for (u32 i = blockIdx.y * WARPS + warp; i < p.first[p.parts]; i += gridDim.y * WARPS) {
    u32 part = 0;
    while (part + 1 < p.parts && i >= p.first[part + 1]) part++;
    const Matrix& m = p.part[part];
    u32 panel = i - p.first[part];
    const u8* at = m.data + (there ? expert * p.bytes[part] : 0) + (u64)panel * m.panel_bytes;
    float acc[PANEL] = {0, 0, 0, 0};
    for (u32 unit = lane; there && unit < m.units; unit += 32) F::unit(m, at, unit, row_of_pick, acc);
    float mine = 0;
#pragma unroll
    for (u32 r = 0; r < PANEL; r++) {
      float sum = warp_sum(acc[r]);
      if (lane == r) mine = sum;
    }
    u32 col = panel * PANEL + lane;
    if (lane < PANEL && col < m.rows) __stcg(out + p.column[part] + col, mine);
  }
}

#define PLANES_EXPERTS(LO, HI) \
  KERNEL __launch_bounds__(WARPS * 32, 2) experts_##LO##_##HI(const __grid_constant__ Experts p) { experts<Planes<LO, HI>>(p); }
PLANES_EXPERTS(8, 0)
PLANES_EXPERTS(4, 0)
PLANES_EXPERTS(2, 0)
PLANES_EXPERTS(1, 0)
PLANES_EXPERTS(2, 1)
PLANES_EXPERTS(4, 1)
PLANES_EXPERTS(4, 2)

#define FLOATS_EXPERTS(NAME, KIND) \
  KERNEL __launch_bounds__(WARPS * 32, 2) experts_##NAME(const __grid_constant__ Experts p) { experts<Floats<KIND>>(p); }
FLOATS_EXPERTS(f32, F32)
FLOATS_EXPERTS(f16, F16)
FLOATS_EXPERTS(bf16, BF16)
