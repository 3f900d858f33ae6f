// Rows times the weights of the experts that they picked.
//
// A block has one pick of one row, and some of the panels of that expert; which expert is read on
// the device. Steps of more rows come here before sm_90 alone (picked.cu); a pick's bits do not depend on what stands beside it.
#include "experts.cuh"
#include "route.cuh"
#include "square.cuh"

constexpr u32 MAX_PARTS = 4;

struct Experts {
  const float* x;
  // Weights of a norm of the row, whose factor is for the sums; null for none.
  const float* norm;
  const u32* ids;
  float* out;
  // Elements from a row to the next, and from a pick to the next (0 where picks share a row).
  u32 x_row, x_pick, id_row, picks, out_row, out_pick;
  u32 cols, experts, parts;
  // If not 0 there are two parts alike, a gate and what it is for, and a function of the gate.
  u32 gated, kind;
  float c, d, eps;
  // Bytes of an expert of each part.
  u64 bytes[MAX_PARTS];
  // Columns of the result before each part; panels before each, the last entry counts all.
  u32 column[MAX_PARTS], first[MAX_PARTS + 1], unused;
  Matrix part[MAX_PARTS];
  // Of the only row: how its picks are made.
  Route route;
};
static_assert(sizeof(Experts) == 520, "src/cuda/abi.rs mirrors it");

// Panels that a warp has at a time: of one part, from `panel` on, so many bytes apart; or the same one of a gate and of what it is for.
struct Task {
  u32 part, panel, n;
  u64 apart;
  DEV Task(const Experts& p, u32 task) : part(0) {
    if (p.gated) {
      panel = task, n = task < p.first[1] ? 2 : 0;
      // Neither has to come first.
      apart = p.part[1].data - p.part[0].data;
      return;
    }
    auto tasks = [&](u32 part) { return (p.first[part + 1] - p.first[part] + PANELS - 1) / PANELS; };
    while (part < p.parts && task >= tasks(part)) task -= tasks(part++);
    panel = task * PANELS;
    n = part < p.parts ? min(PANELS, p.first[part + 1] - p.first[part] - panel) : 0;
    apart = p.part[min(part, p.parts - 1)].panel_bytes;
  }
  DEV const u8* weights(const Experts& p, u32 expert) const {
    const Matrix& m = p.part[part];
    return m.data + expert * p.bytes[part] + (u64)panel * m.panel_bytes;
  }
};

template <class F>
DEV void experts(const Experts& p) {
  extern __shared__ __align__(128) u8 row_of_pick[];
  __shared__ __align__(16) float squares[WARPS];
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 row = blockIdx.x / p.picks, pick = blockIdx.x % p.picks;
  pdl_launch_next();
  pdl_wait();
  u32 expert = p.route.logits ? route(p.route, p.picks, pick, blockIdx.x + blockIdx.y == 0) : cg_u32(p.ids + (u64)row * p.id_row + pick);
  const float* x = p.x + (u64)row * p.x_row + pick * p.x_pick;
  float* out = p.out + (u64)row * p.out_row + pick * p.out_pick;
  // An expert that is not there gives zeros.
  bool there = expert < p.experts;
  u32 groups = (p.part[0].units + F::GROUP - 1) / F::GROUP, task = blockIdx.y * WARPS + warp;
  // The second-level cache has them when the row is made.
  Task first(p, task);
  if (there)
    for (u32 i = 0; i < first.n; i++)
      for (u32 b = lane * 128; b < p.part[first.part].panel_bytes; b += 32 * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(first.weights(p, expert) + i * first.apart + b));
  float of_warp = 0, factor = 1;
  for (u32 g = warp; g < groups; g += WARPS) of_warp += F::make({x, p.norm, p.cols}, row_of_pick, groups, g, lane);
  of_warp = warp_sum(of_warp);
  if (lane == 0) squares[warp] = of_warp;
  __syncthreads();
  if (p.norm) {
    float all = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) all += squares[w];
    factor = norm_factor(all, p.cols, p.eps);
  }
#pragma unroll 1
  for (;; task += gridDim.y * WARPS) {
    Task at(p, task);
    if (at.n == 0) break;
    const Matrix& m = p.part[at.part];
    float v = there ? factor * F::multiply(m, at.weights(p, expert), at.apart, at.n, row_of_pick, groups, lane) : 0.0f;
    u32 output = F::output_of(lane), col = at.panel * PANEL + output, outputs = p.gated ? PANEL : at.n * PANEL;
    // The other panel's outputs are half a warp away.
    float other = __shfl_xor_sync(FULL, v, 16);
    if (p.gated) v = gate(p, v) * other;
    if (output < outputs && col < m.rows) __stcg(out + p.column[at.part] + col, v);
  }
}

#define PLANES_EXPERTS(LO, HI) \
  KERNEL __launch_bounds__(WARPS * 32, 2) experts_##LO##_##HI(const __grid_constant__ Experts p) { experts<PlanesOfExpert<LO, HI>>(p); }
PLANES_EXPERTS(8, 0)
PLANES_EXPERTS(4, 0)
PLANES_EXPERTS(2, 0)
PLANES_EXPERTS(1, 0)
PLANES_EXPERTS(2, 1)
PLANES_EXPERTS(4, 1)
PLANES_EXPERTS(4, 2)

#define FLOATS_EXPERTS(NAME, KIND) \
  KERNEL __launch_bounds__(WARPS * 32, 2) experts_##NAME(const __grid_constant__ Experts p) { experts<FloatsOfExpert<KIND>>(p); }
FLOATS_EXPERTS(f32, F32)
FLOATS_EXPERTS(f16, F16)
FLOATS_EXPERTS(bf16, BF16)
