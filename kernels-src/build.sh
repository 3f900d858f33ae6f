#!/usr/bin/env bash
# Compiles the kernels to cubins/ (or to the folder that is named), byte for byte the same wherever
# it runs. Needs python3 and a package index, but no GPU, no toolkit and no host compiler: the
# compiler is a library in a wheel, and it is pinned.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
out="${1:-$here/../cubins}"
shift || true
# 12.9, so that drivers of the 12 line load what it makes as well.
tools="${GLLM_CUDA_TOOLS:-$here/../target/cuda-tools}"
if [ ! -e "$tools/ready" ]; then
  python3 -m venv "$tools"
  "$tools/bin/python" -m pip install -q --no-deps --disable-pip-version-check \
    nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51
  touch "$tools/ready"
fi
site="$(echo "$tools"/lib/python3*/site-packages/nvidia)"
export PATH="$site/cu13/bin:$PATH"
exec "$tools/bin/python" "$here/build.py" "$site/cuda_nvrtc/lib" "$site/cu13/bin/cuobjdump" "$out" "$@"
