// How a cache keeps rows of heads, `[slot][head][position][dim]`: as halves; or as codes from -127 to
// 127, and behind all of them `[slot][head][position][group]` a scale, a half, for each 32 of a head.
#pragma once
#include "common.cuh"

DEV u32 cache_groups(u32 dim) { return (dim + 31) / 32; }

// Keeps a group of a head in 8 bits, one element a lane (0 where the head has ended). What is not
// finite makes all of it NaN.
DEV void keep_group(i8* codes, u16* scales, u64 row, u32 dim, u32 group, float v) {
  u32 lane = threadIdx.x % 32, d = group * 32 + lane;
  u32 most = __reduce_max_sync(FULL, __float_as_uint(v) & 0x7fffffffu);
  u16 half = f32_to_half(most < 0x7f800000u ? __uint_as_float(most) / 127.0f : __uint_as_float(0x7fc00000u));
  float scale = half_to_f32(half);
  float code = scale > 0.0f ? fminf(fmaxf(v / scale, -127.0f), 127.0f) : 0.0f;
  if (d < dim) codes[row * dim + d] = (i8)__float2int_rn(code);
  if (lane == 0) scales[row * cache_groups(dim) + group] = half;
}

// Eight elements of a row, as halves; without scales they are kept so. Codes times scales are rounded.
DEV uint4 kept8(const u16* kept, const u16* scales, u64 row, u32 dim, u32 d) {
  if (!scales) return cg_u32x4(kept + row * dim + d);
  uint2 codes = __ldcg((const uint2*)((const i8*)kept + row * dim + d));
  float scale = half_to_f32(__ldcg(scales + row * cache_groups(dim) + d / 32));
  auto two = [&](u32 word, u32 i) {
    float a = scale * (float)(i8)(word >> (8 * i)), b = scale * (float)(i8)(word >> (8 * i + 8));
    return (u32)f32_to_half(a) | (u32)f32_to_half(b) << 16;
  };
  return make_uint4(two(codes.x, 0), two(codes.x, 2), two(codes.y, 0), two(codes.y, 2));
}
