// Many rows times weights, on tensor cores: prefill, and batches.
#include "few90.cuh"
#include "gemm80.cuh"
#include "gemm90.cuh"

#define ENTRY(NAME, ...) \
  KERNEL __launch_bounds__(256, 2) NAME(const __grid_constant__ Gemm p) { __VA_ARGS__; }
#if HOPPER
// One for up to 8 rows, one for up to 32, one for more; and one for more where a block has several
// stretches of inputs, whose sums take as many registers again.
#define PAGES(LO, HI) PlanesPage<LO, HI, SHORTEST>, PlanesPage<LO, HI, SHORT>, PlanesPage<LO, HI, LONG>
#define PLANES_GEMM(LO, HI)                                                          \
  ENTRY(gemm_##LO##_##HI##_few, gemm_few<8, PAGES(LO, HI)>(p))                    \
  ENTRY(gemm_##LO##_##HI##_some, gemm_few<32, PAGES(LO, HI)>(p))                  \
  ENTRY(gemm_##LO##_##HI##_many, gemm90<PlanesShare<LO, HI>, 128, false>(p))      \
  ENTRY(gemm_##LO##_##HI##_halves, gemm90<PlanesShare<LO, HI>, 64, true>(p))
// Steps of weights that are on their way: as many as registers hold beside the sums.
DEV constexpr int slots(u32 kind, int most) { return kind == F32 ? most / 2 : most; }
#define FLOATS_GEMM(NAME, KIND)                                                                \
  ENTRY(gemm_##NAME##_few, gemm_few<8, FloatPage<KIND>>(p))                                 \
  ENTRY(gemm_##NAME##_some, gemm_few<32, FloatPage<KIND>>(p))                               \
  ENTRY(gemm_##NAME##_many, gemm90<FloatShare<KIND, slots(KIND, 2)>, 128, false>(p))        \
  ENTRY(gemm_##NAME##_halves, gemm90<FloatShare<KIND, slots(KIND, 2)>, 64, true>(p))
#else
#define PLANES_GEMM(LO, HI) ENTRY(gemm_##LO##_##HI, gemm<PlanesTask<LO, HI>>(p))
#define FLOATS_GEMM(NAME, KIND) ENTRY(gemm_##NAME, gemm<FloatsTask<KIND>>(p))
#endif

PLANES_GEMM(8, 0)
PLANES_GEMM(4, 0)
PLANES_GEMM(2, 0)
PLANES_GEMM(1, 0)
PLANES_GEMM(2, 1)
PLANES_GEMM(4, 1)
PLANES_GEMM(4, 2)
FLOATS_GEMM(f32, F32)
FLOATS_GEMM(f16, F16)
FLOATS_GEMM(bf16, BF16)
