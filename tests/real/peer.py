#!/usr/bin/env python3
"""Writes peer.json: how far llama.cpp, running the quantized files, lies from
transformers in f32. gllm must not lie farther.

    LLAMA_CPP_LIB_PATH=… python3 peer.py --logits DIR [--models DIR]

DIR holds smollm2.f32.npy and gemma3.f32.npy, the f32 logits [512, vocab] of
the first 512 tokens of running.txt (made here when absent, from the same
model that reference.py uses). llama.cpp runs with two threads and its default
settings (f16 KV cache, repacked weights).

"prefill" is one batch of 512, "decode" one token at a time: mean and greatest
KL(f32 || llama.cpp) in nats and the share of positions with the same first
choice. "greedy" counts, for each prompt, the leading tokens on which the two
greedy continuations of 48 agree, and "margin" is the f32 margin where they
part.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import reference

POSITIONS = 512


def running_ids(llama):
    ids = llama.ids((reference.HERE / "running.txt").read_text(), False)
    assert len(ids) > POSITIONS, len(ids)
    return ids[:POSITIONS]


def f32_logits(path, ids):
    import torch

    with torch.inference_mode():
        return reference.load_f32(path)(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def compare(ref, other, rows=64):
    kls, same = [], 0
    for at in range(0, len(ref), rows):
        p = ref[at : at + rows].astype(np.float64)
        q = other[at : at + rows].astype(np.float64)
        same += int((p.argmax(1) == q.argmax(1)).sum())
        for x in (p, q):
            x -= x.max(1, keepdims=True)
            x -= np.log(np.exp(x).sum(1, keepdims=True))
        kls.append((np.exp(p) * (p - q)).sum(1))
    kls = np.concatenate(kls)
    return {
        "mean_kl": float(f"{kls.mean():.6e}"),
        "max_kl": float(f"{kls.max():.6e}"),
        "top1": round(same / len(ref), 6),
    }


def greedy(llama, prompt):
    llama.clear()
    ids = prompt["ids"]
    row, out = llama.logits(ids, 0, False)[0], []
    error = float(np.abs(row[prompt["logit_ids"]] - np.float32(prompt["at"])).max())
    for i in range(reference.GREEDY):
        out.append(int(row.argmax()))
        if i + 1 < reference.GREEDY:
            row = llama.logits(out[-1:], len(ids) + i, False)[0]
    want = prompt["greedy"]["ids"]
    agree = next((i for i, (a, b) in enumerate(zip(out, want)) if a != b), len(want))
    found = {"name": prompt["name"], "agree": agree, "error": round(error, 4)}
    if agree < len(want):
        found["margin"] = prompt["greedy"]["margins"][agree]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, default=reference.HERE.parent.parent / "target" / "models")
    parser.add_argument("--logits", type=Path, required=True)
    parser.add_argument("--stage", choices=["f32", "kl", "greedy", "all"], default="all")
    parser.add_argument("names", nargs="*", default=list(reference.MODELS))
    options = parser.parse_args()
    target = reference.HERE / "peer.json"
    result = json.loads(target.read_text()) if target.exists() else {}
    for name in options.names:
        path = options.models / reference.MODELS[name]
        vocab = reference.Llama(path, vocab_only=True)
        ids = running_ids(vocab)
        file = options.logits / f"{name}.f32.npy"
        if not file.exists():
            options.logits.mkdir(parents=True, exist_ok=True)
            np.save(file, f32_logits(path, ids))
        ref = np.load(file, mmap_mode="r")
        assert ref.shape == (POSITIONS, vocab.size), ref.shape
        print(f"{name}: f32 logits ready", flush=True)
        if options.stage == "f32":
            continue
        entry = result.setdefault(name, {})
        import llama_cpp

        entry["peer"] = f"llama-cpp-python {llama_cpp.__version__}, 2 threads, f16 KV cache"
        if options.stage in ("kl", "all"):
            llama = reference.Llama(path, context=POSITIONS)
            entry["prefill"] = compare(ref, llama.logits(ids, 0, True))
            print(name, "prefill", entry["prefill"], flush=True)
            target.write_text(json.dumps(result, indent=1) + "\n")
            llama.clear()
            start = time.time()
            rows = np.concatenate([llama.logits([t], i, True) for i, t in enumerate(ids)])
            entry["decode"] = compare(ref, rows)
            print(name, "decode", entry["decode"], f"{time.time() - start:.1f} s", flush=True)
            del llama
        if options.stage in ("greedy", "all"):
            file = json.loads((reference.HERE / f"{name}.json").read_text())
            llama = reference.Llama(path, context=1024)
            entry["greedy"] = []
            for prompt in file["prompts"]:
                entry["greedy"].append(greedy(llama, {**prompt, "logit_ids": file["logit_ids"]}))
                print(name, entry["greedy"][-1], flush=True)
            entry["greedy_agree"] = sum(g["agree"] for g in entry["greedy"])
            entry["greedy_of"] = reference.GREEDY * len(entry["greedy"])
        target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
