#!/bin/sh
# The files that the comparisons read: one format after the other, from the same weights.
#
#     benches/peers/make_models.sh LLAMA_QUANTIZE SMOLLM2.gguf GEMMA3.gguf ONE_B_F16.gguf OUT
#
# The two real models may be in any format (they are opened up to f32 first: speed does not depend
# on values, and perplexity is compared file by file); ONE_B_F16 is what random_model.py writes.
# Files that are there already are kept. OUT/LIST names what was made, one path a line.
#
# SmolLM2 and Gemma 3 files are llama.cpp's own mixes, as users have them, but for the k-quants of
# SmolLM2, which are --pure: rows of 576 do not divide by 256, so most of such a file falls back to
# formats of 32 anyway; and Q1_0, for which nothing falls back, is given to ffn_down alone. The 1B
# shape is --pure: one format, head and embedding included.
set -eu
[ $# -eq 5 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
quantize=$1 smollm=$2 gemma=$3 one=$4 out=$5
mkdir -p "$out"

# make SOURCE NAME TYPE [OPTION...]: OUT/NAME of that type, through a name that nobody reads.
make() {
    source=$1 file=$out/$2 type=$3
    shift 3
    if [ ! -e "$file" ]; then
        "$quantize" --allow-requantize "$@" "$source" "$file.part" "$type" >"$out/log" 2>&1 ||
            { tail -5 "$out/log" >&2; echo "$file: not made" >&2; rm -f "$file.part"; return 0; }
        mv "$file.part" "$file"
    fi
    echo "$file"
}

{
    make "$smollm" smollm2-f32.gguf F32
    make "$gemma" gemma3-f32.gguf F32
    for type in Q4_0 Q4_1 Q5_0 Q8_0 Q2_K TQ2_0 TQ1_0 Q2_0 IQ4_NL F16 BF16; do
        make "$out/smollm2-f32.gguf" "smollm2-$(echo $type | tr A-Z a-z).gguf" $type
    done
    make "$out/smollm2-f32.gguf" smollm2-q4_k.gguf Q4_K_S --pure
    make "$out/smollm2-f32.gguf" smollm2-q6_k.gguf Q6_K --pure
    make "$out/smollm2-f32.gguf" smollm2-q1_0.gguf Q4_0 --tensor-type ffn_down=q1_0
    for type in Q4_K_M Q2_K TQ2_0 Q1_0; do
        make "$out/gemma3-f32.gguf" "gemma3-$(echo $type | tr A-Z a-z).gguf" $type
    done
    for type in F16 BF16 Q8_0 Q4_0 Q6_K Q5_0 Q2_K TQ2_0 TQ1_0 Q1_0 Q2_0 IQ4_NL; do
        make "$one" "1b-$(echo $type | tr A-Z a-z).gguf" $type --pure
    done
    make "$one" 1b-q4_k.gguf Q4_K_S --pure
} >"$out/LIST.part"
mv "$out/LIST.part" "$out/LIST"
rm -f "$out/log"
cat "$out/LIST"
