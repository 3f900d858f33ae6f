// Row-local work: a list of operations on whole rows (prologues, embeddings, residual sums, routing),
// or on units of a product's columns that must be seen together (a head: norms, rotations, cache
// writes).
//
// A block has one unit of one row. Values are registers in shared memory; a thread owns every 256th
// element, and all threads meet after each operation. Indices are words in the place of floats.
#include "cache.cuh"
#include "epilogue.cuh"
#include "heads.cuh"
#include "layout.cuh"
#include "picks.cuh"
#include "split.cuh"
#include "square.cuh"

enum RowWhat : u32 {
  R_EMBED, R_SELECT, R_NORM, R_ROPE, R_UNARY, R_BINARY, R_SLICE, R_PUT, R_STORE, R_SPLIT,
  R_SHARES, R_TOP_K, R_PICK, R_MIX, R_JOIN
};
// What names the rows of a table: the step's tokens, its positions, an operand; or all in turn.
enum RowIds : u32 { TOKENS, POSITIONS, PICKS, ALL };

struct RowOp {
  u32 what, to, len, kind;
  float c;
  u32 n0, n1, n2;
  // A function has the bits of its second constant in `b.n`.
  Operand a, b;
  const void* aux;
  void* aux2;
};

// Columns that are split into units, and what is done to each.
struct Job {
  u32 first_block, unit, op, ops;
};

constexpr u32 MAX_ROW_OPS = 40;
constexpr u32 MAX_JOBS = 6;
constexpr u32 MAX_TABLES = 4;

struct Rows {
  const u32 *tokens, *positions, *slots, *outs;
  // Rows of the list that a row of the step falls into; if more than one, there is one job.
  u32 jobs, fold;
  // Units of all jobs; blocks beyond them have none.
  u32 blocks, unused;
  Job job[MAX_JOBS];
  Matrix table[MAX_TABLES];
  RowOp op[MAX_ROW_OPS];
};
static_assert(sizeof(Rows) == 3664, "src/cuda/abi.rs mirrors it");

// Elements that a register's number counts in.
constexpr u32 FOUR = 4;

// A thread's elements of a row that is not too long are read once, all at a time; `rest` reads others again.
constexpr u32 HELD = 8;
template <class Rest, class What>
DEV void each_held(const float (&held)[HELD], u32 len, Rest rest, What what) {
  u32 t = threadIdx.x, step = blockDim.x;
#pragma unroll
  for (u32 k = 0; k < HELD; k++)
    if (t + k * step < len) what(t + k * step, held[k]);
  for (u32 e = t + HELD * step; e < len; e += step) what(e, rest(e));
}

KERNEL __launch_bounds__(256) rows(const __grid_constant__ Rows p) {
  extern __shared__ __align__(16) float registers[];
  __shared__ float shared32[32], squares[16];
  if (blockIdx.x >= p.blocks) {
    pdl_launch_next();
    pdl_wait();
    return;
  }
  for (u32 block = blockIdx.x; block < p.blocks; block += gridDim.x) {
    u32 j = 0;
    while (j + 1 < p.jobs && block >= p.job[j + 1].first_block) j++;
    const Job& job = p.job[j];
    u32 row = blockIdx.y * p.fold + (p.fold > 1 ? block : 0);
    u32 col = (block - job.first_block) * job.unit;
    pdl_launch_next();
    // Constants that nobody has used for a whole step are far away: send for them now.
    for (u32 i = job.op; i < job.op + job.ops; i++)
      if (p.op[i].what == R_NORM && p.op[i].aux && threadIdx.x * 32 < p.op[i].n0)
        asm volatile("prefetch.global.L1 [%0];" ::"l"((const float*)p.op[i].aux + threadIdx.x * 32));
    pdl_wait();
    auto at = [&](const Operand& o) -> const float* {
      if (o.where == REGISTER) return registers + o.n * FOUR;
      return o.at + (o.where == ROWS ? (u64)row * o.n : 0) + col;
    };
    auto read = [&](const Operand& o, const float* base, u32 i) {
      return o.where == REGISTER ? base[i] : cg_f32(base + i);
    };
    for (u32 i = job.op, left = job.ops; left; i++, left--) {
      const RowOp& op = p.op[i];
      float* to = registers + op.to * FOUR;
      const float* a = at(op.a);
      u32 t = threadIdx.x, step = blockDim.x, lane = t % 32;
      switch (op.what) {
        case R_EMBED: {
          // kind: the table; n0: what names its rows; n1: its columns; aux: bytes of one matrix of it.
          const Matrix& table = p.table[op.kind];
          u32 one = 0;
          if (op.n0 == TOKENS) one = cg_u32(p.tokens + row);
          if (op.n0 == POSITIONS) one = cg_u32(p.positions + row);
          for (u32 e = t; e < op.len; e += step) {
            u32 first = col + e, id = op.n0 == ALL ? first / op.n1 : one;
            if (op.n0 == PICKS) id = __float_as_uint(read(op.a, a, e / op.n1));
            // A row that is not there is zeros.
            bool in = op.n0 == ALL || id < table.rows;
            u64 skip = (u64)op.aux * (id / table.rows);
            to[e] = in ? value_at(table, id % table.rows, first % op.n1, skip) : 0.0f;
          }
          break;
        }
        case R_SELECT: {
          const float* from = op.a.at + (u64)cg_u32(p.outs + row) * op.a.n;
          for (u32 e = t; e < op.len; e += step) to[e] = cg_f32(from + e);
          break;
        }
        case R_NORM: {
          // kind 1: the mean is taken off; 2: a weight for each head; 4: its factor is for the sums of a product that reads
          // it, and squares go to aux2, also of a part of the row. A weight and a bias or none.
          const float *weight = (const float*)op.aux, *bias = (const float*)op.aux2;
          bool layer = op.kind & 1, each = op.kind & 2, factored = op.kind & 4;
          if (factored) bias = nullptr;
          auto write = [&](u32 at, u32 e, float v) {
            u32 w = each ? col + at : e;
            if (weight) v *= weight[w];
            if (bias) v += bias[w];
            to[at] = v;
          };
          if ((op.len == op.n0 || factored) && !layer && op.len % 4 == 0) {
            // In the order of square.cuh: 16 threads have a block of 128 columns, two fours each.
            u32 blocks = (op.len + 127) / 128, column = t / 16 * 128 + t / 4 % 4 * 32 + t % 4 * 4;
            // Four at once where they lie well.
            const float* by = weight ? weight + (each || factored ? col : 0) : nullptr;
            bool well = (u64)a % 16 == 0, kept = op.a.where == REGISTER;
            float4 v[2];
            auto hold = [&](u32 first) {
#pragma unroll
              for (u32 k = 0; k < 2; k++) {
                u32 e = first * 128 + column + k * 16;
                bool on = e < op.len;
                auto one = [&](u32 j) { return on ? read(op.a, a, e + j) : 0.0f; };
                if (!well || !on) v[k] = make_float4(one(0), one(1), one(2), one(3));
                else v[k] = kept ? *(const float4*)(a + e) : cg_f32x4(a + e);
              }
            };
            float sum = 0;
            for (u32 first = 0; first < blocks; first += step / 16) {
              hold(first);
              // Of half a block.
              float half = squares_of(v[0]) + squares_of(v[1]);
              half += __shfl_xor_sync(FULL, half, 4), half = sum_of_lanes(half, 1, 2);
              if (factored) {
                u32 at = first * 2 + t / 8, all = op.n0 / SQUARED;
                if (t % 8 == 0 && at < op.len / SQUARED) __stcg((float*)op.aux2 + (u64)row * squares_stride(all) + col / SQUARED + at, half);
                continue;
              }
              half += __shfl_xor_sync(FULL, half, 8);
              if (t % 16 == 0) squares[t / 16] = half;
              __syncthreads();
#pragma unroll 4
              for (u32 i = 0; i < min(step / 16, blocks - first); i++) sum += squares[i];
              __syncthreads();
            }
            float scale = factored ? 1.0f : norm_scale(sum, op.n0, op.c);
            for (u32 first = 0; first < blocks; first += step / 16) {
              if (blocks > step / 16) hold(first);
#pragma unroll
              for (u32 k = 0; k < 2; k++) {
                u32 e = first * 128 + column + k * 16;
                if (e >= op.len) continue;
                float4 r = make_float4(v[k].x * scale, v[k].y * scale, v[k].z * scale, v[k].w * scale);
                if (by && !bias && (u64)by % 16 == 0) {
                  float4 w = *(const float4*)(by + e);
                  *(float4*)(to + e) = make_float4(r.x * w.x, r.y * w.y, r.z * w.z, r.w * w.w);
                } else {
                  write(e, e, r.x), write(e + 1, e + 1, r.y), write(e + 2, e + 2, r.z), write(e + 3, e + 3, r.w);
                }
              }
            }
          } else if (op.len == op.n0) {
            float held[HELD], mean = 0, sum = 0;
#pragma unroll
            for (u32 k = 0; k < HELD; k++) held[k] = t + k * step < op.len ? read(op.a, a, t + k * step) : 0.0f;
            auto rest = [&](u32 e) { return read(op.a, a, e); };
            if (layer) {
              each_held(held, op.len, rest, [&](u32, float v) { sum += v; });
              mean = block_sum(sum, shared32) / (float)op.n0;
              sum = 0;
            }
            each_held(held, op.len, rest, [&](u32, float v) { sum += (v - mean) * (v - mean); });
            sum = block_sum(sum, shared32);
            float scale = 1.0f / sqrtf(sum / (float)op.n0 + op.c);
            each_held(held, op.len, rest, [&](u32 e, float v) { write(e, e, (v - mean) * scale); });
          } else {
            // A warp a head.
            for (u32 h = t / 32 * op.n0; h < op.len; h += step / 32 * op.n0) {
              float mean = 0, sum = 0;
              if (layer) {
                for (u32 e = lane; e < op.n0; e += 32) sum += read(op.a, a, h + e);
                mean = warp_sum(sum) / (float)op.n0;
                sum = 0;
              }
              for (u32 e = lane; e < op.n0; e += 32) {
                float v = read(op.a, a, h + e) - mean;
                sum += v * v;
              }
              sum = warp_sum(sum);
              float scale = 1.0f / sqrtf(sum / (float)op.n0 + op.c);
              for (u32 e = lane; e < op.n0; e += 32)
                write(h + e, e, (read(op.a, a, h + e) - mean) * scale);
            }
          }
          break;
        }
        case R_SHARES: {
          // Shares of each n0 elements: of e^x if kind is 1, of x if it is 0.
          auto share = [&](u32 h, u32 first, u32 stride, bool whole) {
            float most = 0, sum = 0;
            if (op.kind) {
              most = -INFINITY;
              for (u32 e = first; e < op.n0; e += stride) most = fmaxf(most, read(op.a, a, h + e));
              most = whole ? block_max(most, shared32) : warp_max(most);
            }
            for (u32 e = first; e < op.n0; e += stride) {
              float v = read(op.a, a, h + e);
              if (op.kind) v = expf(v - most);
              to[h + e] = v;
              sum += v;
            }
            sum = whole ? block_sum(sum, shared32) : warp_sum(sum);
            for (u32 e = first; e < op.n0; e += stride) to[h + e] /= sum;
          };
          if (op.len == op.n0)
            share(0, t, step, true);
          else
            for (u32 h = t / 32 * op.n0; h < op.len; h += step / 32 * op.n0) share(h, lane, 32, false);
          break;
        }
        case R_TOP_K: {
          // The indices of the `len` greatest of n0, one after the other, by one warp.
          constexpr u32 KEPT = 4;
          u64 last = ~0ull, kept[KEPT];
#pragma unroll
          for (u32 i = 0; i < KEPT; i++) {
            u32 e = lane + 32 * i;
            kept[i] = t < 32 && e < op.n0 ? pick_key(read(op.a, a, e), e) : 0;
          }
          for (u32 k = 0; t < 32 && k < op.len; k++) {
            u64 best = 0;
#pragma unroll
            for (u32 i = 0; i < KEPT; i++)
              if (kept[i] < last && kept[i] > best) best = kept[i];
            for (u32 e = lane + 32 * KEPT; e < op.n0; e += 32) {
              u64 key = pick_key(read(op.a, a, e), e);
              if (key < last && key > best) best = key;
            }
#pragma unroll
            for (int o = 16; o; o >>= 1) {
              u64 other = __shfl_xor_sync(FULL, best, o);
              if (other > best) best = other;
            }
            last = best;
            if (lane == 0) to[k] = __uint_as_float(~(u32)best);
          }
          break;
        }
        case R_PICK: {
          // Of n0 elements those that b names.
          const float* b = at(op.b);
          for (u32 e = t; e < op.len; e += step) {
            u32 id = __float_as_uint(read(op.b, b, e));
            to[e] = id < op.n0 ? read(op.a, a, id) : 0.0f;
          }
          break;
        }
        case R_MIX: {
          // The sum of n0 rows of n1 columns, times their weights, which all columns have.
          const float* b = at(op.b) - (op.b.where == REGISTER ? 0 : col);
          bool twos = op.a.where != REGISTER && op.len % 2 == 0 && op.n1 % 2 == 0 && (u64)a % 8 == 0;
          for (u32 e = 2 * t; twos && e < op.len; e += 2 * step) {
            float2 sum = {};
            // Asked for together: in turn each is as far as the second-level cache.
#pragma unroll 4
            for (u32 k = 0; k < op.n0; k++) {
              float by = read(op.b, b, k);
              float2 v = __ldcg((const float2*)(a + k * op.n1 + e));
              sum.x += by * v.x, sum.y += by * v.y;
            }
            *(float2*)(to + e) = sum;
          }
          for (u32 e = t; !twos && e < op.len; e += step) {
            float sum = 0;
#pragma unroll 4
            for (u32 k = 0; k < op.n0; k++) sum += read(op.b, b, k) * read(op.a, a, k * op.n1 + e);
            to[e] = sum;
          }
          break;
        }
        case R_JOIN:
          // Each n1 elements go to column n0 of n2.
          for (u32 e = t; e < op.len; e += step)
            to[e / op.n1 * op.n2 + op.n0 + e % op.n1] = read(op.a, a, e);
          break;
        case R_ROPE: {
          // n0: a head, n1: what of it turns; kind 0: neighbours, 1: halves.
          const float2* turn = (const float2*)op.aux + (u64)cg_u32(p.positions + row) * (op.n1 / 2);
          for (u32 e = t; e < op.len; e += step) {
            u32 h = e % op.n0, half = op.n1 / 2;
            float v = read(op.a, a, e);
            if (h < op.n1) {
              bool first = op.kind ? h < half : h % 2 == 0;
              u32 pair = op.kind ? h % half : h / 2, away = op.kind ? half : 1;
              float2 cs = turn[pair];
              float other = read(op.a, a, first ? e + away : e - away);
              v = first ? turned_first(v, other, cs) : turned_second(other, v, cs);
            }
            to[e] = v;
          }
          break;
        }
        case R_UNARY:
          for (u32 e = t; e < op.len; e += step)
            to[e] = function(op.kind, read(op.a, a, e), op.c, __uint_as_float(op.b.n));
          break;
        case R_BINARY: {
          const float* b = at(op.b);
          for (u32 e = t; e < op.len; e += step)
            to[e] = binary(op.kind, read(op.a, a, e), read(op.b, b, e));
          break;
        }
        case R_SLICE:
          // n0: first column, n1: how many, n2: of how many.
          for (u32 e = t; e < op.len; e += step)
            to[e] = read(op.a, a, e / op.n1 * op.n2 + op.n0 + e % op.n1);
          break;
        case R_PUT: {
          float* out = (float*)at(op.b);
          for (u32 e = t; e < op.len; e += step) __stcg(out + e, read(op.a, a, e));
          break;
        }
        case R_STORE: {
          // n0: a head, n1: positions, n2: heads; kind 1: in 8 bits, with scales at aux.
          u32 position = cg_u32(p.positions + row), slot = cg_u32(p.slots + row);
          if (op.kind) {
            // A warp a group.
            u32 groups = cache_groups(op.n0);
            for (u32 g = t / 32; g < op.len / op.n0 * groups; g += step / 32) {
              u32 h = g / groups, d = g % groups * 32 + lane;
              u64 kept = ((u64)slot * op.n2 + col / op.n0 + h) * op.n1 + position;
              float v = d < op.n0 ? read(op.a, a, h * op.n0 + d) : 0.0f;
              keep_group((i8*)op.aux2, (u16*)op.aux, kept, op.n0, g % groups, v);
            }
            break;
          }
          u16* cache = (u16*)op.aux2;
          for (u32 e = t; e < op.len; e += step) {
            u32 head = (col + e) / op.n0, d = (col + e) % op.n0;
            u64 i = (((u64)slot * op.n2 + head) * op.n1 + position) * op.n0 + d;
            cache[i] = f32_to_half(read(op.a, a, e));
          }
          break;
        }
        case R_SPLIT: {
          // Two bf16 that add up to the value, n0 columns a row with zeros at the end; kind: where
          // (split.cuh), n1: groups of rows, aux2: sums, if there are any. If n2 is not 0 the row is that of so many picks, whose
          // places b has. Several pairs are read before the first is written.
          constexpr u32 PAIRS = 4;
          for (u32 e0 = 2 * t; e0 < op.n0; e0 += 2 * PAIRS * step) {
            float v[PAIRS], w[PAIRS];
#pragma unroll
            for (u32 k = 0; k < PAIRS; k++) {
              u32 e = e0 + 2 * k * step;
              if (op.a.where == REGISTER && e + 1 < op.len) {
                float2 both = *(const float2*)(a + e);
                v[k] = both.x, w[k] = both.y;
                continue;
              }
              v[k] = e < op.len ? read(op.a, a, e) : 0.0f;
              w[k] = e + 1 < op.len ? read(op.a, a, e + 1) : 0.0f;
            }
#pragma unroll
            for (u32 k = 0; k < PAIRS; k++) {
              u32 e = e0 + 2 * k * step;
              if (e >= op.n0) break;
              if (op.kind != PLAIN_ROWS) {
                SplitTiles tiles = {(u16*)op.aux, (u8*)op.aux2, op.n1, op.kind};
                auto leave = [&](u32 row, float v, float w) {
                  leave_split(tiles, row, col + e, v, w);
                  if (tiles.sums) leave_sums_of<8>(tiles, row, col + e, v + w, FULL);
                };
                if (op.n2 == 0) leave(row, v[k], w[k]);
                for (u32 i = 0; i < op.n2; i++) {
                  u32 place = cg_u32((const u32*)op.b.at + (u64)row * op.n2 + i);
                  bool none = place & NO_EXPERT;
                  leave(place & ~NO_EXPERT, none ? 0.0f : v[k], none ? 0.0f : w[k]);
                }
                continue;
              }
              u64 place = (u64)row * op.n0 + e;
              u32 high = bf16x2(v[k], w[k]);
              *(u32*)((u16*)op.aux + place) = high;
              *(u32*)((u16*)op.aux2 + place) = low_parts(v[k], w[k], high);
            }
          }
          break;
        }
      }
      __syncthreads();
    }
  }
}
