#!/usr/bin/env bash
# Rebuilds the cubins and compares them with those that are checked in, byte for byte; then looks at
# what no test on one chip can see: spills, resources of the smaller chips, and instructions.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
"$here/build.sh" "$fresh"
for path in "$fresh"/MANIFEST "$fresh"/sm_*/*.cubin; do
  cmp "$path" "$here/../cubins/${path#"$fresh"/}" || { echo "run kernels-src/build.sh"; exit 1; }
done
stale="$(cd "$here/../cubins" && find . -type f ! -name README.md | while read -r f; do [ -e "$fresh/$f" ] || echo "$f"; done)"
test -z "$stale" || { echo "nothing builds $stale"; exit 1; }

# What lowering leaves a chain's own memory, in KiB.
own() { sed -nE "s/.* $1_SHARED: usize = ([0-9]+) << 10;/\1/p" "$here/../src/cuda/abi.rs"; }
# Columns: arch file kernel arguments hash compiler registers stack shared bytes.
awk -v chain="$(own CHAIN)" -v several="$(own SEVERAL)" '!/^#/ {
  # What 64 registers of 1,024 threads do not hold, or 128 beside sums and f32 weights, or beside those of units and of
  # all (of each way to look at scales that the kernel has), or 255 beside sums of wide heads; and what is put away once a
  # launch.
  if ($8 > ($3 ~ /^gemm_f(32|16)_(many|halves)/ ? 24 : $3 == "pick" || $3 == "experts_4_2" ? 16 : $3 ~ /^(gemm|picked)_._._(halves|tables)/ ? 152 : $3 == "attend_many_4" ? 208 : $3 == "attend_many_2" ? 32 : $3 ~ "gemv_[24]_0" ? 8 : 0)) {
    print $1, $3 ": " $8 " bytes of stack"; bad = 1
  }
  # Two blocks of 256 threads, four of 128, or one of 1,024, 352 or 288, must fit the 65,536 registers; of attention with four
  # warps two.
  if ($7 > ($3 == "pick" ? 64 : $3 == "chain" || $3 == "several" ? 168 : $3 ~ /^attend_(many|few_._4)/ ? 255 : 128)) { print $1, $3 ": " $7 " registers"; bad = 1 }
  if ($9 > 1024 * ($3 == "chain" ? chain : $3 == "several" ? several : 24)) { print $1, $3 ": " $9 " bytes of static shared memory"; bad = 1 }
} END { exit bad }' "$fresh/MANIFEST"

tools="${GLLM_CUDA_TOOLS:-$here/../target/cuda-tools}"
bin="$(echo "$tools"/lib/python3*/site-packages/nvidia/cu13/bin)"
sass() { PATH="$bin:$PATH" "$bin/cuobjdump" -sass "$fresh/$1" 2>/dev/null; }
has() { grep -qE "$2" "$fresh/sass" || { echo "$1: no $2"; exit 1; }; }
lacks() { ! grep -qE "$2" "$fresh/sass" || { echo "$1: $2"; exit 1; }; }
for arch in sm_80 sm_86 sm_89 sm_90a; do
  sass "$arch/gemv.cubin" > "$fresh/sass"
  has "$arch gemv" 'IDP\.2A\.HI\.S16\.U8'
  has "$arch gemv" 'LDS\.128'
  # Bits are counted by tensor cores.
  for of in 128 256; do has "$arch gemv" "BMMA\.168$of\.AND\.POPC"; done
  if [ "$arch" = sm_90a ]; then
    # Weights by bulk copies, completion by barriers, programmatic launches.
    has "$arch gemv" 'UBLKCP'
    has "$arch gemv" 'SYNCS\.PHASECHK'
    has "$arch gemv" 'ACQBULK'
  else
    has "$arch gemv" 'LDGSTS\.E\.BYPASS\.128'
    lacks "$arch gemv" 'UBLKCP|SYNCS|ACQBULK'
  fi
  sass "$arch/gemm.cubin" > "$fresh/sass"
  if [ "$arch" = sm_90a ]; then
    # Products of a warpgroup, weights from registers, rows by bulk copies; of a warp where rows are few.
    for n in 32 64 128; do has "$arch gemm" "HGMMA\.64x${n}x16\.F32\.BF16 R[0-9]+, R[0-9]+, gdesc"; done
    has "$arch gemm" 'UBLKCP'
    has "$arch gemm" 'HMMA\.16816\.F32\.BF16'
    sass "$arch/several.cubin" > "$fresh/sass"
    has "$arch several" 'UBLKCP'
    has "$arch several" 'HMMA\.16816\.F32\.BF16'
  else
    has "$arch gemm" 'HMMA\.16816\.F32\.BF16'
    has "$arch gemm" 'LDSM\.16\.M88\.4'
    lacks "$arch gemm" 'HGMMA|UBLKCP|SYNCS'
  fi
done
echo "cubins: $(grep -vc '^#' "$fresh/MANIFEST") kernels as built, resources and instructions as meant"
