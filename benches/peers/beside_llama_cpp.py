#!/usr/bin/env python3
"""gllm beside llama.cpp: the same file, threads and machine, turn by turn.

    python3 benches/peers/beside_llama_cpp.py target/release/gllm MODEL.gguf [--threads 2] [--rounds 5]

Needs llama-cpp-python (LLAMA_CPP_LIB_PATH may name a build of libllama that is tuned for this
machine). Each round measures both, one after the other: prefill of 512 tokens and decode of 128
tokens after one, as llama-bench does. Printed are medians and the median of the rounds' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PROMPT, DECODE = 512, 128


def peer(path, threads):
    """One process a round, so that neither program keeps memory or threads while the other runs."""
    import ctypes

    import llama_cpp as api

    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    model = api.llama_model_load_from_file(path.encode(), params)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = PROMPT
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    memory = api.llama_get_memory(context)

    def run(tokens, start):
        batch = api.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i + 1 == len(tokens)
        batch.n_tokens = len(tokens)
        before = time.perf_counter()
        status = api.llama_decode(context, batch)
        api.llama_synchronize(context)
        took = time.perf_counter() - before
        api.llama_batch_free(batch)
        assert status == 0, status
        return took

    tokens = [i * 7919 % vocabulary for i in range(PROMPT)]
    prefill, decode = [], []
    for _ in range(4):
        api.llama_memory_clear(memory, True)
        prefill.append(PROMPT / run(tokens, 0))
        api.llama_memory_clear(memory, True)
        run(tokens[:1], 0)
        decode.append(DECODE / sum(run([tokens[i]], i) for i in range(1, DECODE + 1)))
    # The first warms up.
    return {"prefill": statistics.median(prefill[1:]), "decode": statistics.median(decode[1:])}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gllm")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_once:
        print(json.dumps(peer(options.model, options.threads)))
        return
    rounds = []
    for _ in range(options.rounds):
        ours = json.loads(
            subprocess.check_output(
                [options.gllm, "bench", options.model, "--threads", str(options.threads), "-r", "3"]
            )
        )
        theirs = json.loads(
            subprocess.check_output(
                [sys.executable, __file__, options.gllm, options.model, "--peer-once"]
                + ["--threads", str(options.threads)],
                stderr=subprocess.DEVNULL,
            )
        )
        rounds.append((ours, theirs))
    print(f"{os.path.basename(options.model)}, {options.threads} threads, {options.rounds} rounds")
    for what in ("prefill", "decode"):
        a = [r[0][what]["tokens_per_second"] for r in rounds]
        b = [r[1][what] for r in rounds]
        ratio = statistics.median(x / y for x, y in zip(a, b))
        print(
            f"{what:8} gllm {statistics.median(a):7.1f} ({min(a):.1f} to {max(a):.1f}), "
            f"llama.cpp {statistics.median(b):7.1f} ({min(b):.1f} to {max(b):.1f}), ratio {ratio:.2f}"
        )
    share = statistics.median(r[0]["share_of_bandwidth"] for r in rounds)
    print(f"gllm decode reads {share:.0%} of the measured read bandwidth")


if __name__ == "__main__":
    main()
