// Row-local work: a list of operations on whole rows (prologues, embeddings, residual sums), or on
// units of a product's columns that must be seen together (a head: norms, rotations, cache writes).
//
// A block has one unit of one row. Values are registers in shared memory; a thread owns every 256th
// element, and all threads meet after each operation.
#include "epilogue.cuh"
#include "layout.cuh"

enum RowWhat : u32 { R_EMBED, R_SELECT, R_NORM, R_ROPE, R_UNARY, R_BINARY, R_SLICE, R_PUT, R_STORE, R_SPLIT };

struct RowOp {
  u32 what, to, len, kind;
  float c;
  u32 n0, n1, n2;
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

struct Rows {
  const u32 *tokens, *positions, *slots, *outs;
  u32 jobs, width;
  Job job[MAX_JOBS];
  Matrix table;
  RowOp op[MAX_ROW_OPS];
};
static_assert(sizeof(Rows) == 3416, "src/cuda/abi.rs mirrors it");

KERNEL __launch_bounds__(256) rows(const __grid_constant__ Rows p) {
  extern __shared__ __align__(16) float registers[];
  __shared__ float shared32[32];
  u32 j = 0;
  while (j + 1 < p.jobs && blockIdx.x >= p.job[j + 1].first_block) j++;
  const Job& job = p.job[j];
  u32 row = blockIdx.y, col = (blockIdx.x - job.first_block) * job.unit;
  pdl_launch_next();
  // Constants that nobody has used for a whole step are far away: send for them now.
  for (u32 i = job.op; i < job.op + job.ops; i++)
    if (p.op[i].what == R_NORM && threadIdx.x * 32 < p.op[i].n0)
      asm volatile("prefetch.global.L2 [%0];" ::"l"((const float*)p.op[i].aux + threadIdx.x * 32));
  pdl_wait();
  auto at = [&](const Operand& o) -> const float* {
    if (o.where == REGISTER) return registers + o.n * p.width;
    return o.at + (o.where == ROWS ? (u64)row * o.n : 0) + col;
  };
  auto read = [&](const Operand& o, const float* base, u32 i) {
    return o.where == REGISTER ? base[i] : cg_f32(base + i);
  };
  for (u32 i = job.op; i < job.op + job.ops; i++) {
    const RowOp& op = p.op[i];
    float* to = registers + op.to * p.width;
    const float* a = at(op.a);
    u32 t = threadIdx.x, step = blockDim.x;
    switch (op.what) {
      case R_EMBED: {
        u32 token = cg_u32(p.tokens + row);
        for (u32 e = t; e < op.len; e += step) to[e] = value_at(p.table, token, e);
        break;
      }
      case R_SELECT: {
        const float* from = op.a.at + (u64)cg_u32(p.outs + row) * op.a.n;
        for (u32 e = t; e < op.len; e += step) to[e] = cg_f32(from + e);
        break;
      }
      case R_NORM: {
        const float* weight = (const float*)op.aux;
        if (op.len == op.n0) {
          float sum = 0;
          for (u32 e = t; e < op.len; e += step) {
            float v = read(op.a, a, e);
            sum += v * v;
          }
          sum = block_sum(sum, shared32);
          float scale = 1.0f / sqrtf(sum / (float)op.n0 + op.c);
          for (u32 e = t; e < op.len; e += step) to[e] = read(op.a, a, e) * scale * weight[e];
        } else {
          // A warp a head.
          u32 lane = t % 32;
          for (u32 h = t / 32; h * op.n0 < op.len; h += step / 32) {
            float sum = 0;
            for (u32 e = lane; e < op.n0; e += 32) {
              float v = read(op.a, a, h * op.n0 + e);
              sum += v * v;
            }
            sum = warp_sum(sum);
            float scale = 1.0f / sqrtf(sum / (float)op.n0 + op.c);
            for (u32 e = lane; e < op.n0; e += 32)
              to[h * op.n0 + e] = read(op.a, a, h * op.n0 + e) * scale * weight[e];
          }
        }
        break;
      }
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
            if (first) {
              float w = read(op.a, a, e + away);
              v = v * cs.x - w * cs.y;
            } else {
              float w = read(op.a, a, e - away);
              v = w * cs.y + v * cs.x;
            }
          }
          to[e] = v;
        }
        break;
      }
      case R_UNARY:
        for (u32 e = t; e < op.len; e += step) to[e] = unary(op.kind, read(op.a, a, e), op.c);
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
        // n0: a head, n1: positions, n2: heads.
        u32 position = cg_u32(p.positions + row), slot = cg_u32(p.slots + row);
        u16* cache = (u16*)op.aux2;
        for (u32 e = t; e < op.len; e += step) {
          u32 head = (col + e) / op.n0, d = (col + e) % op.n0;
          u64 i = (((u64)slot * op.n2 + head) * op.n1 + position) * op.n0 + d;
          cache[i] = f32_to_half(read(op.a, a, e));
        }
        break;
      }
      default: {
        // Two bf16 that add up to the value, n0 columns a row with zeros at the end.
        u16 *high = (u16*)op.aux + (u64)row * op.n0, *low = (u16*)op.aux2 + (u64)row * op.n0;
        for (u32 e = t; e < op.n0; e += step) {
          float v = e < op.len ? read(op.a, a, e) : 0.0f;
          u32 h = bf16x2(v, 0.0f) & 0xffff;
          // What is left of infinity is not a number, and nothing is left of NaN but itself.
          high[e] = (u16)h;
          low[e] = (u16)(bf16x2(v - __uint_as_float(h << 16), 0.0f) & 0xffff);
        }
      }
    }
    __syncthreads();
  }
}
