#!/usr/bin/env python3
"""Perplexity of gllm beside llama.cpp's: the same files, the same text, the same windows.

    perplexity.py --gllm target/release/gllm --llama-perplexity llama-perplexity --models A.gguf ...
                  [--text alice.txt] [--window 512] [--threads 2] [--json FILE] [--within 0.5]

Exits with 1 when a model is more than --within percent *worse* or better than there. The text is
the beginning of "Alice's Adventures in Wonderland" (1865, in the public domain) as it lies in the
crate brotli 3.4.0, testdata/alice29.txt.
"""

import argparse
import json
import os
import re
import subprocess
import sys


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gllm", default="target/release/gllm")
    parser.add_argument("--llama-perplexity", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--text", default=os.path.join(here, "alice.txt"))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--within", type=float, default=0.5, metavar="PERCENT")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rows, bad = [], []
    print("| model | gllm | llama.cpp | difference |\n|---|---|---|---|")
    for model in options.models:
        name = os.path.splitext(os.path.basename(model))[0]
        ours = [options.gllm, "perplexity", model, options.text, "--json"]
        ours += ["--window", str(options.window), "--threads", str(options.threads)]
        ours = subprocess.run(ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if ours.returncode != 0:
            print(f"| {name} | {ours.stderr.strip().splitlines()[-1]} | | |", flush=True)
            continue
        ours = json.loads(ours.stdout)
        theirs = [options.llama_perplexity, "-m", model, "-f", options.text]
        theirs += ["-c", str(options.window), "-t", str(options.threads)]
        theirs = subprocess.run(theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", theirs.stdout)
        if not found:
            last = theirs.stdout.strip().splitlines()[-1:]
            print(f"| {name} | {ours['perplexity']:.4f} | {last} | |", flush=True)
            continue
        ours, theirs = ours["perplexity"], float(found[1])
        percent = 100 * (ours / theirs - 1)
        print(f"| {name} | {ours:.4f} | {theirs:.4f} | {percent:+.3f}% |", flush=True)
        rows.append({"model": name, "gllm": ours, "llama.cpp": theirs, "percent": percent})
        if not abs(percent) <= options.within:
            bad.append(name)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if bad:
        sys.exit(f"differ by more than {options.within}%: {', '.join(bad)}")


if __name__ == "__main__":
    main()
