#!/bin/bash
# gllm beside llama.cpp on a machine that has neither, nor a network: a folder that travels.
#
#     benches/peers/sixteen.sh pack KIT GLLM LLAMA_BIN WHEEL...
#     KIT/sixteen.sh measure OUT
#
# `pack` fills the folder KIT, about 30 MB: the stripped gllm, llama-bench and llama-quantize out of
# the folder LLAMA_BIN (built for the machine to measure), the libraries they need, this script and
# the Python beside it, and wheels of what random_model.py imports (gguf; numpy and yaml are taken to
# be there). `measure` makes a 1B-shaped model of random weights in MODELS, quantizes it and writes
# OUT/results.json and OUT/results.md; what is measured already is kept, so a run that was cut off
# goes on. Settings are variables:
#
#     FORMATS="Q4_0 Q8_0 F16 ..."  THREADS="16 8 1"  ROUNDS=2  SECONDS_LIMIT=540  MODELS=/tmp/models
set -eu
here=$(cd "$(dirname "$0")" && pwd)

pack() {
    [ $# -ge 3 ] || { sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2; }
    kit=$1 gllm=$2 bin=$3
    shift 3
    mkdir -p "$kit/lib" "$kit/wheels"
    strip -o "$kit/gllm" "$gllm"
    for program in llama-bench llama-quantize; do
        strip -o "$kit/$program" "$bin/$program"
        # Not libc and its loader: they must be the machine's own.
        ldd "$kit/$program" | awk '$3 ~ /lib(gomp|stdc\+\+|gcc_s)/ { print $3 }' |
            xargs -r -I{} cp -Lf {} "$kit/lib/"
    done
    cp "$here/sixteen.sh" "$here/beside_llama_cpp.py" "$here/random_model.py" "$kit/"
    cp "$here/../../src/embedded/tiny.gguf" "$kit/tokenizer.gguf"
    [ $# -eq 0 ] || cp "$@" "$kit/wheels/"
    du -sh "$kit"
}

measure() {
    out=$1 models=${MODELS:-/tmp/models} start=$SECONDS limit=${SECONDS_LIMIT:-540}
    mkdir -p "$out" "$models"
    # The machine's own libraries first, where it has them.
    if ! "$here/llama-bench" --help >/dev/null 2>&1; then
        export LD_LIBRARY_PATH=$here/lib
        "$here/llama-bench" --help >/dev/null
    fi
    {
        date -u +%Y-%m-%d
        lscpu | grep -E "^(Model name|CPU\(s\)|Thread|Core|Socket|L2|L3|NUMA node\(s\))"
        lscpu | grep -oE -w "avx2|avx_vnni|avx512f|avx512_vnni|avx512_bf16|amx_int8|amx_bf16" | tr '\n' ' '
        echo
        grep -E "MemTotal|MemAvailable" /proc/meminfo
        "$here/gllm" --version
    } | tee "$out/machine.txt"
    base=$models/1b-f16.gguf
    if [ ! -e "$base" ]; then
        site=$models/site
        # A wheel is an archive of what is to be imported.
        mkdir -p "$site"
        for wheel in "$here"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
        PYTHONPATH=$site python3 "$here/random_model.py" "$base.part" \
            --shape llama-3.2-1b --tokenizer "$here/tokenizer.gguf"
        mv "$base.part" "$base"
        echo "made $base after $((SECONDS - start)) s"
    fi
    for format in ${FORMATS:-Q4_0 Q8_0 F16 TQ2_0 Q4_K_S Q2_K Q6_K Q5_0 Q1_0 BF16}; do
        file=$models/1b-$(echo "$format" | tr A-Z a-z).gguf
        if [ ! -e "$file" ]; then
            "$here/llama-quantize" --pure "$base" "$file.part" "$format" "$(nproc)" >"$models/log" 2>&1 ||
                { tail -n 3 "$models/log"; rm -f "$file.part"; continue; }
            mv "$file.part" "$file"
        fi
        for threads in ${THREADS:-16 8 1}; do
            if [ $((SECONDS - start)) -gt "$limit" ]; then
                echo "stopped after $((SECONDS - start)) s, before $format with $threads threads"
                return 0
            fi
            # One thread needs more time for less: shorter prompts say the same.
            if [ "$threads" -ge 4 ]; then size="-p 512 -n 64"; else size="-p 64 -n 16"; fi
            # shellcheck disable=SC2086
            python3 "$here/beside_llama_cpp.py" --gllm "$here/gllm" \
                --llama-bench "$here/llama-bench" --models "$file" --threads "$threads" \
                --rounds "${ROUNDS:-2}" --repeat 2 $size --json "$out/results.json" --append --missing
        done
        python3 "$here/beside_llama_cpp.py" --table "$out/results.json" >"$out/results.md"
    done
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
pack) pack "$@" ;;
measure) measure "$@" ;;
*) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
