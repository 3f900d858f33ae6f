#!/usr/bin/env python3
"""What gllm quantizes, read by gllm and by llama.cpp.

    quantize.py --gllm target/release/gllm --llama FOLDER --model MODEL.gguf [--text FILE]
                [--window 256] [--threads 2] [--types Q4_K ...]

For every format: `gllm quantize` writes a file; llama.cpp (llama-perplexity in --llama) must load
it, and both programs' perplexities of the text must agree within 1.5 percent, where it is below
1000 (llama.cpp rounds activations to 8 bits; a model of one bit a weight, not trained for that,
predicts nothing). From 4 bits on, perplexity must stay within 1.6 times that of the model given.
Exits with 1 when one of these does not hold.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

TYPES = "F16 BF16 Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL MXFP4 Q3_K Q2_K Q2_0 TQ2_0 TQ1_0 Q1_0"
# Formats of fewer than 4 bits.
COARSE = "Q3_K Q2_K Q2_0 TQ2_0 TQ1_0 Q1_0".split()
NUMBER = re.compile(r"Final estimate: PPL = ([0-9.]+)")


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def ours(options, model):
    code, said = run(
        [options.gllm, "perplexity", model, options.text, "--json"]
        + ["--window", str(options.window), "--threads", str(options.threads)]
    )
    return json.loads(said)["perplexity"] if code == 0 else said.strip()


def theirs(options, model):
    _, said = run(
        [os.path.join(options.llama, "llama-perplexity"), "-m", model, "-f", options.text]
        + ["-c", str(options.window), "-t", str(options.threads)]
    )
    found = NUMBER.search(said)
    return float(found[1]) if found else said.strip()[-200:]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gllm", required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", default=os.path.join(here, "running.txt"))
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--types", nargs="+", default=TYPES.split())
    options = parser.parse_args()
    source = ours(options, options.model)
    print(f"{'given':8} {source:38.4f}", flush=True)
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.types:
            path = os.path.join(folder, "quantized.gguf")
            command = [options.gllm, "quantize", options.model, path, "--type", kind, "--force"]
            code, said = run(command)
            if code != 0:
                sys.exit(f"{kind}: {said}")
            total = said.strip().splitlines()[-1].split("->")[1].strip()
            a, b = ours(options, path), theirs(options, path)
            if isinstance(a, str) or isinstance(b, str):
                print(f"{kind:8} gllm: {a}, llama.cpp: {b}", flush=True)
                bad.append(kind)
                continue
            apart = 100 * (a / b - 1)
            numbers = f"gllm {a:14.4f}  llama.cpp {b:14.4f}  {apart:+.2f}%"
            print(f"{kind:8} {total:52} {numbers}", flush=True)
            if (b < 1000 and abs(apart) > 1.5) or (kind not in COARSE and a > 1.6 * source):
                bad.append(kind)
    if bad:
        sys.exit(f"not as they should be: {', '.join(bad)}")


if __name__ == "__main__":
    main()
