// Many rows times weights, on tensor cores: prefill, and batches.
#include "few90.cuh"
#include "gemm80.cuh"

#if HOPPER
#define PLANES_GEMM(LO, HI, ...)                                                    \
  ENTRY_FEW(gemm_##LO##_##HI##_few, planes_few<8, false, LO, HI, __VA_ARGS__>(p))   \
  ENTRY_FEW(gemm_##LO##_##HI##_some, planes_few<32, false, LO, HI, __VA_ARGS__>(p)) \
  ENTRY_MANY(gemm_##LO##_##HI##_halves, planes_many<false, false, LO, HI, __VA_ARGS__>(p))
#define FLOATS_GEMM(NAME, KIND)                                 \
  ENTRY_FEW(gemm_##NAME##_few, floats_few<8, false, KIND>(p))   \
  ENTRY_FEW(gemm_##NAME##_some, floats_few<32, false, KIND>(p)) \
  ENTRY_MANY(gemm_##NAME##_many, floats_many<128, false, KIND>(p)) \
  ENTRY_MANY(gemm_##NAME##_halves, floats_many<64, false, KIND>(p))
#else
#define ENTRY(NAME, ...) \
  KERNEL __launch_bounds__(256, 2) NAME(const __grid_constant__ Gemm p) { __VA_ARGS__; }
#define PLANES_GEMM(LO, HI, ...) ENTRY(gemm_##LO##_##HI, gemm<PlanesTask<LO, HI>>(p))
#define FLOATS_GEMM(NAME, KIND) ENTRY(gemm_##NAME, gemm<FloatsTask<KIND>>(p))
#endif

OF_PLANES(PLANES_GEMM)
#if HOPPER
ENTRY_MANY(gemm_4_0_tables, planes_many<false, true, 4, 0, LOOK_SIGNS, LOOK_TABLE, LOOK_ANY>(p))
#endif
FLOATS_GEMM(f32, F32)
FLOATS_GEMM(f16, F16)
FLOATS_GEMM(bf16, BF16)
