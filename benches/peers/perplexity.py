#!/usr/bin/env python3
"""Perplexity of gllm beside llama.cpp's: the same files, the same text, the same windows.

    perplexity.py --gllm target/release/gllm --llama-perplexity llama-perplexity --models A.gguf ...
                  [--llama-quantize llama-quantize] [--text alice.txt] [--window 512] [--threads 2]
                  [--within 0.5] [--json FILE]

With --llama-quantize there is a third number: llama.cpp's on the same weights opened up to f32,
where no activation is rounded to 8 bits. That is what both try to compute. Exits with 1 when gllm is
further than --within percent from that number; without it, from llama.cpp on the same file.

The text is the beginning of "Alice's Adventures in Wonderland" (1865, in the public domain) as it
lies in the crate brotli 3.4.0, testdata/alice29.txt.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

NUMBER = re.compile(r"Final estimate: PPL = ([0-9.]+)")


def ours(options, model):
    command = [options.gllm, "perplexity", model, options.text, "--json"]
    command += ["--window", str(options.window), "--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["?"])[-1]
    return json.loads(done.stdout)["perplexity"], ""


def theirs(options, model):
    command = [options.llama_perplexity, "-m", model, "-f", options.text]
    command += ["-c", str(options.window), "-t", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = NUMBER.search(done.stdout)
    if not found:
        return None, (done.stdout.strip().splitlines() or ["?"])[-1]
    return float(found[1]), ""


def exact(options, model):
    """llama.cpp's on a copy whose weights are f32."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        copy = os.path.join(folder, "f32.gguf")
        command = [options.llama_quantize, "--allow-requantize", model, copy, "F32"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            return None, (done.stdout.strip().splitlines() or ["?"])[-1]
        return theirs(options, copy)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gllm", default="target/release/gllm")
    parser.add_argument("--llama-perplexity", required=True)
    parser.add_argument("--llama-quantize")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--text", default=os.path.join(here, "alice.txt"))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--within", type=float, default=0.5, metavar="PERCENT")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--scratch", metavar="FOLDER", help="where copies in f32 are put")
    options = parser.parse_args()
    rows, bad = [], []
    print("| model | gllm | llama.cpp | difference | weights in f32 | gllm from it | llama.cpp |")
    print("|---|---|---|---|---|---|---|")
    percent = lambda a, b: 100 * (a / b - 1)
    for model in options.models:
        name = os.path.splitext(os.path.basename(model))[0]
        (a, why), (b, why_b) = ours(options, model), theirs(options, model)
        f32, why_f32 = exact(options, model) if options.llama_quantize and a else (None, "")
        cells = [f"{a:.4f}" if a else why, f"{b:.4f}" if b else why_b]
        cells.append(f"{percent(a, b):+.3f}%" if a and b else "")
        cells.append(f"{f32:.4f}" if f32 else why_f32)
        cells += [f"{percent(x, f32):+.3f}%" if x and f32 else "" for x in (a, b)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        rows.append({"model": name, "gllm": a, "llama.cpp": b, "f32": f32})
        close = a and abs(percent(a, f32 or b or float("nan"))) <= options.within
        if not close:
            bad.append(name)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if bad:
        sys.exit(f"not within {options.within}%: {', '.join(bad)}")


if __name__ == "__main__":
    main()
