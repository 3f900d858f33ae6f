#!/usr/bin/env bash
# Everything that needs a CUDA device; one line a suite. Exits with 1 if any failed.
#
#   tests/gpu.sh [TEST-BINARY]      without a binary, cargo builds it
#
# GLLM_MODELS may name a folder with the models of tests/real/fetch.sh. The sanitizers run where
# compute-sanitizer is found; without it that is a failure, unless GLLM_NO_SANITIZER is set.
set -uo pipefail
if [ $# -gt 0 ]; then
  tests="$1"
else
  cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
  tests="$(cargo test --locked --no-run --test cuda 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')"
fi
failed=0
suite() {
  local name="$1" start=$SECONDS
  shift
  if out="$("$@" 2>&1)"; then
    echo "ok      $name: $(grep -oE '[0-9]+ passed' <<<"$out" | tail -1), $((SECONDS - start)) s"
  else
    echo "FAILED  $name, $((SECONDS - start)) s"
    tail -40 <<<"$out"
    failed=1
  fi
}
for part in ops graphs architectures sampling replay models::the_embedded; do
  suite "$part" "$tests" --ignored --test-threads=1 "$part"
done
if [ -n "${GLLM_MODELS:-}" ]; then
  suite "real models" "$tests" --ignored --test-threads=1 real_models
else
  echo "skipped real models: GLLM_MODELS is not set"
fi
if command -v compute-sanitizer >/dev/null; then
  # One after the other: side by side they take several times as long.
  for tool in memcheck initcheck synccheck racecheck; do
    for case in embeddings what_follows every_op a_few_tokens several_sequences logits_that greedy_and a_batch gates_that; do
      more=""
      # A barrier a stage of each warp's ring: more than the tool expects.
      [ "$tool" = synccheck ] && more="--num-cuda-barriers 65536"
      # shellcheck disable=SC2086
      suite "$tool $case" compute-sanitizer --tool "$tool" $more --error-exitcode 9 "$tests" --ignored --test-threads=1 "$case"
    done
  done
elif [ -z "${GLLM_NO_SANITIZER:-}" ]; then
  echo "FAILED  compute-sanitizer is not here"
  failed=1
fi
exit $failed
