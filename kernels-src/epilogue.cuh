// What becomes of a product, element by element: straight lines for the hot chains, byte code for
// the rest. An element sees one value of each part of its domain (gate and up, say).
#pragma once
#include "fresh.cuh"

// Fresh ones are rows that another launch of the same kernel leaves.
enum Where : u32 { REGISTER = 0, ROWS = 1, VECTOR = 2, FRESH = 3 };

struct Operand {
  // Base of rows or of a vector.
  const float* at;
  u32 where;
  // The register's number, or elements from a row to the next.
  u32 n;
};

enum What : u32 { UNARY = 0, BINARY = 1, PUT = 2 };

struct Op {
  u32 what, to, kind;
  float c;
  // Where `b` would say how far rows are apart a function has the bits of its second constant.
  Operand a, b;
};

enum Form : u32 { STORE = 0, RESIDUAL = 1, GATED = 2, CODE = 3 };
constexpr u32 MAX_OPS = 14;
constexpr u32 MAX_REGISTERS = 12;

struct Epilogue {
  u32 form, kind, count;
  float d, c;
  u32 out_stride;
  float* out;
  Operand residual;
  Op ops[MAX_OPS];
};

DEV float operand(const Operand& o, u32 row, u32 col, const float* regs, u32 step) {
  if (o.where == REGISTER) return regs[o.n * step];
  return cg_f32(o.at + (o.where == ROWS ? (u64)row * o.n : 0) + col);
}

// Runs the byte code of one element; register `r` is `regs[r * step]`, and the parts' values are in
// the first ones.
__device__ __noinline__ void run_code(const Epilogue& e, u32 row, u32 col, float* regs, u32 step) {
  for (u32 i = 0; i < e.count; i++) {
    const Op& op = e.ops[i];
    float a = operand(op.a, row, col, regs, step);
    if (op.what == PUT) {
      __stcg((float*)op.b.at + (u64)row * op.b.n + col, a);
    } else if (op.what == UNARY) {
      regs[op.to * step] = unary(op.kind, a, op.c, __uint_as_float(op.b.n));
    } else {
      regs[op.to * step] = binary(op.kind, a, operand(op.b, row, col, regs, step));
    }
  }
}


// SiLU without a call, since all of a block does it at once.
template <class E>
DEV float gate(const E& e, float v) {
  return e.kind == SILU ? __fdividef(v, 1.0f + __expf(-v)) : unary(e.kind, v, e.c, e.d);
}

// `early` is the residual's element, loaded before the product was done.
DEV void finish(const Epilogue& e, u32 row, u32 col, float v0, float v1, float early, float* regs,
                u32 step) {
  float* out = e.out + (u64)row * e.out_stride + col;
  if (e.form == STORE) {
    __stcg(out, v0);
  } else if (e.form == RESIDUAL) {
    __stcg(out, early + v0);
  } else if (e.form == GATED) {
    __stcg(out, gate(e, v0) * v1);
  } else {
    regs[0] = v0;
    regs[step] = v1;
    run_code(e, row, col, regs, step);
  }
}

constexpr u32 MAX_DOMAINS = 3;
