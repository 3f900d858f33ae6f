// Many rows times weights, on tensor cores: prefill, and batches.
#include "few90.cuh"
#include "gemm80.cuh"
#include "gemm90.cuh"

#define ENTRY_FOR(THREADS, BLOCKS, NAME, ...) \
  KERNEL __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ Gemm p) { __VA_ARGS__; }
#define ENTRY(NAME, ...) ENTRY_FOR(256, 2, NAME, __VA_ARGS__)
#if HOPPER
// Few rows are a warpgroup's.
#define ENTRY_FEW(NAME, ...) ENTRY_FOR(128, 4, NAME, __VA_ARGS__)
// One for up to 8 rows, one for up to 32, one for more; and of floats one for many more where a block has several
// stretches of inputs. Of planes sums of units are beside those of all, so that 64 rows are enough for a block.
template <u32 N, int LO, int HI, u32... LOOKS>
DEV void planes_few(const Gemm& p) {
  gemm_few<N, PlanesPage<LO, HI, LOOKS, N == 8 ? at_once(LO, HI, LOOKS) : 1>...>(p);
}
template <bool TABLES, int LO, int HI, u32... LOOKS>
DEV void planes_many(const Gemm& p) {
  gemm_many<64, PlanesAhead<LO, HI, LOOKS, TABLES>...>(p);
}
#define PLANES_GEMM(LO, HI, ...)                                             \
  ENTRY_FEW(gemm_##LO##_##HI##_few, planes_few<8, LO, HI, __VA_ARGS__>(p))   \
  ENTRY_FEW(gemm_##LO##_##HI##_some, planes_few<32, LO, HI, __VA_ARGS__>(p)) \
  ENTRY(gemm_##LO##_##HI##_halves, planes_many<false, LO, HI, __VA_ARGS__>(p))
template <u32 N, u32 KIND>
DEV void floats_few(const Gemm& p) {
  gemm_few<N, FloatPage<KIND>>(p);
}
template <u32 N, u32 KIND>
DEV void floats_many(const Gemm& p) {
  // Steps of weights that are on their way: as many as registers hold beside the sums.
  constexpr int SLOTS = KIND == F32 ? 1 : 2;
  gemm_many<N, FloatShare<KIND, SLOTS>>(p);
}
#define FLOATS_GEMM(NAME, KIND)                          \
  ENTRY_FEW(gemm_##NAME##_few, floats_few<8, KIND>(p))   \
  ENTRY_FEW(gemm_##NAME##_some, floats_few<32, KIND>(p)) \
  ENTRY(gemm_##NAME##_many, floats_many<128, KIND>(p))   \
  ENTRY(gemm_##NAME##_halves, floats_many<64, KIND>(p))
#else
#define PLANES_GEMM(LO, HI, ...) ENTRY(gemm_##LO##_##HI, gemm<PlanesTask<LO, HI>>(p))
#define FLOATS_GEMM(NAME, KIND) ENTRY(gemm_##NAME, gemm<FloatsTask<KIND>>(p))
#endif

OF_PLANES(PLANES_GEMM)
#if HOPPER
ENTRY(gemm_4_0_tables, planes_many<true, 4, 0, LOOK_TABLE, LOOK_ANY>(p))
#endif
FLOATS_GEMM(f32, F32)
FLOATS_GEMM(f16, F16)
FLOATS_GEMM(bf16, BF16)
