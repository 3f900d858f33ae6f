#!/usr/bin/env python3
"""gllm beside ik_llama.cpp: the same files and threads, turn by turn.

    pip install ik-llama-cpp-python
    beside_ik_llama.py --gllm target/release/gllm --models A.gguf B.gguf [--threads 2] [--rounds 3]

The package has a library, but no llama-bench, so what llama-bench does is done here through the C
API: a prompt of 512 tokens in one batch, 128 steps of one token from an empty context, after a round
that warms up. The published build stops at AVX2; IK_LLAMA_CPP_LIB_PATH may name another.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PROMPT, DECODE, REPEAT = 512, 128, 2
MEDIAN = statistics.median


def peer(path, threads):
    """Prefill and decode rates, in a process of its own."""
    import ctypes

    import ik_llama_cpp._ctypes_api as api

    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    model = api.llama_model_load_from_file(path.encode(), params)
    assert model, path
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = PROMPT
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def run(tokens, start):
        batch = api.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i + 1 == len(tokens)
        batch.n_tokens = len(tokens)
        before = time.perf_counter()
        status = api.llama_decode(context, batch)
        assert status == 0, status
        # Reading a logit waits for all of them.
        api.llama_get_logits_ith(context, len(tokens) - 1)[0]
        took = time.perf_counter() - before
        api.llama_batch_free(batch)
        return took

    tokens = [i * 7919 % vocabulary for i in range(PROMPT)]
    prefill, decode = [], []
    for _ in range(REPEAT + 1):
        api.llama_kv_cache_clear(context)
        prefill.append(PROMPT / run(tokens, 0))
        api.llama_kv_cache_clear(context)
        decode.append(DECODE / sum(run([tokens[i]], i) for i in range(DECODE)))
    # The first warms up.
    return {"pp": MEDIAN(prefill[1:]), "tg": MEDIAN(decode[1:])}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gllm", default="target/release/gllm")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_once:
        print(json.dumps(peer(options.models[0], options.threads)))
        return
    print("| model | threads | test | gllm | ik_llama.cpp | ratio |\n|---|---|---|---|---|---|")
    for model in options.models:
        rounds = []
        for number in range(options.rounds):
            ours = [options.gllm, "bench", model, "--json", "-r", str(REPEAT)]
            ours += ["-p", str(PROMPT), "-n", str(DECODE), "--threads", str(options.threads)]
            theirs = [sys.executable, __file__, "--peer-once", "--models", model]
            theirs += ["--threads", str(options.threads)]
            pair = {}
            for command in [ours, theirs] if number % 2 == 0 else [theirs, ours]:
                out = subprocess.check_output(command, stderr=subprocess.DEVNULL)
                said = json.loads(out)
                if command is ours:
                    runs = {run["name"][:2]: run["tokens_per_second"] for run in said["runs"]}
                    pair["ours"] = runs
                else:
                    pair["theirs"] = said
            rounds.append(pair)
        for test, tokens in (("pp", PROMPT), ("tg", DECODE)):
            a = [pair["ours"][test] for pair in rounds]
            b = [pair["theirs"][test] for pair in rounds]
            ratio = MEDIAN(x / y for x, y in zip(a, b))
            name = os.path.splitext(os.path.basename(model))[0]
            print(
                f"| {name} | {options.threads} | {test}{tokens} | {MEDIAN(a):.1f} "
                f"| {MEDIAN(b):.1f} | **{ratio:.2f}** |",
                flush=True,
            )


if __name__ == "__main__":
    main()
