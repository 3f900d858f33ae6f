// Many rows times the weights of the experts that they picked, for sm_90a: the products of gemm.cu, of which a tile of rows has an
// expert. Kernels of their own, since what they look up would cost the others 1% of batches and up to 7% of prompts.
#include "few90.cuh"
#include "picks.cuh"

#if HOPPER
KERNEL __launch_bounds__(SORTERS) sort_picks(const __grid_constant__ Picks p) { sort_picks_of(p); }

#define PLANES_PICKED(LO, HI, ...)                                                   \
  ENTRY_FEW(picked_##LO##_##HI##_few, planes_few<8, true, LO, HI, __VA_ARGS__>(p))   \
  ENTRY_FEW(picked_##LO##_##HI##_some, planes_few<32, true, LO, HI, __VA_ARGS__>(p)) \
  ENTRY_MANY(picked_##LO##_##HI##_halves, planes_many<true, false, LO, HI, __VA_ARGS__>(p))
#define FLOATS_PICKED(NAME, KIND)                                \
  ENTRY_FEW(picked_##NAME##_few, floats_few<8, true, KIND>(p))   \
  ENTRY_FEW(picked_##NAME##_some, floats_few<32, true, KIND>(p)) \
  ENTRY_MANY(picked_##NAME##_halves, floats_many<64, true, KIND>(p))

OF_PLANES(PLANES_PICKED)
ENTRY_MANY(picked_4_0_tables, planes_many<true, true, 4, 0, LOOK_SIGNS, LOOK_TABLE, LOOK_ANY>(p))
FLOATS_PICKED(f32, F32)
FLOATS_PICKED(f16, F16)
FLOATS_PICKED(bf16, BF16)
#endif
