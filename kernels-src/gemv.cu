// The decode products: one template, an instance for each pair of planes and each float format.
#include "gemv.cuh"

#define PLANES_GEMV(LO, HI) \
  KERNEL __launch_bounds__(GEMV_THREADS, 2) gemv_##LO##_##HI(const __grid_constant__ Gemv p) { gemv<Planes<LO, HI>>(p); }
PLANES_GEMV(8, 0)
PLANES_GEMV(4, 0)
PLANES_GEMV(2, 0)
PLANES_GEMV(1, 0)
PLANES_GEMV(2, 1)
PLANES_GEMV(4, 1)
PLANES_GEMV(4, 2)

#define FLOATS_GEMV(NAME, KIND) \
  KERNEL __launch_bounds__(GEMV_THREADS, 2) gemv_##NAME(const __grid_constant__ Gemv p) { gemv<Floats<KIND>>(p); }
FLOATS_GEMV(f32, F32)
FLOATS_GEMV(f16, F16)
FLOATS_GEMV(bf16, BF16)
