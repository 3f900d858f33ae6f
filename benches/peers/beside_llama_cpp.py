#!/usr/bin/env python3
"""gllm beside llama.cpp: the same files, threads and machine, turn by turn.

    beside_llama_cpp.py --gllm target/release/gllm --llama-bench llama-bench --models A.gguf B.gguf
                        [--threads 2 1] [--rounds 3] [--repeat 2] [-p 512] [-n 128] [--depth 0 4096]
                        [--json FILE] [--markdown FILE] [--append]
    beside_llama_cpp.py --table FILE.json...

A round runs `gllm bench` and llama.cpp's own `llama-bench` on one file, one after the other, in
processes of their own; every other round the other goes first. Both measure a prompt of -p tokens
in one go and -n steps of one token from an empty context (or from --depth tokens), after warming
up, --repeat times a round. Printed are the medians over rounds, and the median of the rounds'
ratios: noise that lasts longer than a round hits both and leaves the ratio alone.

Only the standard library is needed. --json keeps everything that was measured; --append adds to it
and replaces older rows of the same model, threads and test, or, with --missing, leaves out models
that are there with so many threads; --table prints such files again.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

MEDIAN = statistics.median


def ours(options, model, threads, depth):
    """{test: tokens a second} and what else `gllm bench` says; None where it refuses the file."""
    command = [options.gllm, "bench", model, "--json", "--threads", str(threads)]
    command += ["-p", str(options.prompt), "-n", str(options.n), "-r", str(options.repeat)]
    command += ["--depth", str(depth)] + (["--isa", options.isa] if options.isa else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["?"])[-1]
    report = json.loads(done.stdout)
    return {run["name"]: run["tokens_per_second"] for run in report["runs"]}, report


def theirs(options, model, threads, depth):
    """{test: tokens a second} of llama-bench; None where it refuses the file."""
    command = [options.llama_bench, "-m", model, "-t", str(threads), "-o", "json"]
    command += ["-p", str(options.prompt), "-n", str(options.n), "-r", str(options.repeat)]
    command += ["-d", str(depth)] + options.llama_options.split()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["?"])[-1]
    tests = {}
    for run in json.loads(done.stdout):
        kind, tokens = ("pp", run["n_prompt"]) if run["n_prompt"] else ("tg", run["n_gen"])
        name = f"{kind}{tokens}" + (f" @ d{run['n_depth']}" if run["n_depth"] else "")
        tests[name] = MEDIAN(run["samples_ts"])
    return tests, None


def measure(options, model, threads, depth):
    """The rows of one file with so many threads."""
    rounds, reports, why = [], [], {}
    for number in range(options.rounds):
        pair = {}
        programs = [("gllm", ours), ("llama.cpp", theirs)]
        for name, program in programs if number % 2 == 0 else reversed(programs):
            if name == "llama.cpp" and not options.llama_bench:
                continue
            if name in why:
                continue
            rates, more = program(options, model, threads, depth)
            if rates is None:
                why[name] = more
                print(f"{os.path.basename(model)}: {name}: {more}", file=sys.stderr)
                continue
            pair[name] = rates
            reports += [more] if more else []
        rounds.append(pair)
    rows = []
    for test in dict.fromkeys(t for pair in rounds for rates in pair.values() for t in rates):
        row = {
            "model": os.path.splitext(os.path.basename(model))[0],
            "file_bytes": os.path.getsize(model),
            "threads": threads,
            "test": test,
            "rounds": len(rounds),
            "date": datetime.datetime.now().isoformat(timespec="minutes"),
        }
        rates = {
            name: [pair[name][test] for pair in rounds if test in pair.get(name, {})]
            for name in ("gllm", "llama.cpp")
        }
        row.update({name: values for name, values in rates.items() if values})
        if all(rates.values()):
            row["ratio"] = MEDIAN(a / b for a, b in zip(rates["gllm"], rates["llama.cpp"]))
        if reports:
            row["isa"] = reports[0]["isa"]
            row["load_seconds"] = MEDIAN(report["load_seconds"] for report in reports)
        runs = [run for report in reports for run in report["runs"] if run["name"] == test]
        reads = [run["reads"] for run in runs if "reads" in run]
        if reads:
            row["bytes_per_token"] = reads[0]["bytes_per_token"]
            row["gb_per_second"] = MEDIAN(r["bytes_per_second"] for r in reads) / 1e9
            row["read_gb_per_second"] = MEDIAN(r["read_bytes_per_second"] for r in reads) / 1e9
            row["share"] = MEDIAN(r["share_of_bandwidth"] for r in reads)
        rows.append(row)
    return rows


def table(rows):
    """The rows in markdown."""
    lines = [
        "| model | threads | test | gllm | llama.cpp | ratio | gllm reads | of what the machine reads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["model"], row["threads"], row["test"]]
        for name in ("gllm", "llama.cpp"):
            values = row.get(name)
            if not values:
                cells.append("-")
                continue
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{MEDIAN(values):.1f}{spread}")
        cells.append(f"**{row['ratio']:.2f}**" if "ratio" in row else "")
        if "gb_per_second" in row:
            share = row.get("share", row["gb_per_second"] / row["read_gb_per_second"])
            cells.append(f"{row['gb_per_second']:.1f} GB/s")
            cells.append(f"{share:.0%} of {row['read_gb_per_second']:.1f}")
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gllm", default="target/release/gllm")
    parser.add_argument("--llama-bench", default="")
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("--depth", nargs="+", type=int, default=[0])
    parser.add_argument("--isa", help="what gllm is to use, instead of the best")
    parser.add_argument("--llama-options", default="", help="more options of llama-bench")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--missing", action="store_true", help="skip what --json has already")
    parser.add_argument("--table", nargs="+", metavar="FILE.json")
    options = parser.parse_args()
    if options.table:
        print(table([row for path in options.table for row in json.load(open(path))]), end="")
        return
    if not options.models:
        parser.error("--models is missing")
    rows, kept = [], []
    if options.json and options.append and os.path.exists(options.json):
        kept = json.load(open(options.json))
    have = {(row["model"], row["threads"]) for row in kept} if options.missing else set()
    for model in options.models:
        for threads in options.threads:
            if (os.path.splitext(os.path.basename(model))[0], threads) in have:
                continue
            for depth in options.depth:
                new = measure(options, model, threads, depth)
                rows += new
                print(table(new).split("\n", 2)[2], end="", flush=True)
    key = lambda row: (row["model"], row["threads"], row["test"])
    replaced = {key(row) for row in rows}
    rows = [row for row in kept if key(row) not in replaced] + rows
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if options.markdown:
        with open(options.markdown, "w") as file:
            file.write(table(rows))


if __name__ == "__main__":
    main()
