// Attention of the only row of a step as a launch of its own: an instance for each width of heads.
#include "attend_one.cuh"

template <u32 PAIRS>
DEV void alone(const AttendOne& p) {
  extern __shared__ __align__(16) u8 shared[];
  __shared__ AttendShared<PAIRS> own;
  u32 position = cg_u32(p.positions);
  Alone tiles = {(u16*)shared, p.chunk * AttendShared<PAIRS>::LINE};
  attend_one<PAIRS>(p, Fresh{}, position, Seen(p, position, cg_u32(p.slots)), own, tiles, threadIdx.x);
}

#define ATTEND_ONE(PAIRS) \
  KERNEL __launch_bounds__(256, 2) attend_one_##PAIRS(const __grid_constant__ AttendOne p) { alone<PAIRS>(p); }
ATTEND_ONE(1)
ATTEND_ONE(2)
ATTEND_ONE(4)
