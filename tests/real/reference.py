#!/usr/bin/env python3
"""Writes smollm2.json and gemma3.json: what two other programs say about the
two real models, for the tests in this folder to compare against.

    LLAMA_CPP_LIB_PATH=… python3 reference.py [--models DIR] [--ids] [smollm2|gemma3 …]

Written with llama-cpp-python 0.3.36 (llama.cpp 0c1e57098), transformers,
torch, gguf and numpy of the versions recorded in each file under "versions".
LLAMA_CPP_LIB_PATH names the folder of a built libllama.

Token ids come from llama.cpp and are checked against the tokenizer that
transformers builds from the same file; a prompt on which they differ stops the
script; the few that cannot agree are in SKIPPED. Plain text gets a BOS where
the file asks for one, and control tokens spelled out in it stay text. A chat is
rendered with the file's own template (a file without one skips the chats) and
its control tokens are parsed.

Logits come from transformers: the file's weights dequantized to f32, CPU,
eager attention. "at" holds the last position's logits at "logit_ids", "top"
its eight greatest, "max_abs" its greatest magnitude. "greedy" continues for
48 tokens, past any end token; it is made with the KV cache, then checked by
one pass over the whole text without a cache, whose top-1 minus top-2 logits
are the margins. --ids stops before the logits.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = {
    "smollm2": "smollm2-135m-instruct-q4_1.gguf",
    "gemma3": "gemma-3-270m-q4_k_m.gguf",
}
# transformers builds SmolLM2's tokenizer from the GGUF without its split of digits, so that a space or
# a line break joins a number after it; llama.cpp and the model's own tokenizer part them.
SKIPPED = {"smollm2": ["arabic", "combining_marks", "markdown_table"], "gemma3": []}
GREEDY = 48
TOP = 8
AT = 64


class Llama:
    """The little of libllama that is needed here."""

    def __init__(self, path, vocab_only=False, context=0, threads=2, flash=None, kv_f32=False):
        import llama_cpp

        self.api = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        if not os.environ.get("LLAMA_LOG"):
            llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            sys.exit(f"{path}: llama.cpp could not load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        if context:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx = context
            params.n_batch = max(context, 512)
            params.n_threads = params.n_threads_batch = threads
            if flash is not None:
                params.flash_attn_type = 1 if flash else 0
            if kv_f32:
                params.type_k = params.type_v = 0
            self.context = llama_cpp.llama_init_from_model(self.model, params)
            if not self.context:
                sys.exit(f"{path}: llama.cpp could not make a context")

    def ids(self, text, special):
        data = text.encode()
        room = len(data) + 8
        out = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(self.vocab, data, len(data), out, room, True, special)
        assert count >= 0, count
        return list(out[:count])

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def logits(self, ids, start, every):
        """Runs ids from position start; logits of all rows, or of the last alone."""
        import numpy

        batch = self.api.llama_batch_init(len(ids), 0, 1)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i + 1 == len(ids)
        batch.n_tokens = len(ids)
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        assert status == 0, status
        rows = [
            numpy.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.size,)).copy()
            for i in (range(len(ids)) if every else [len(ids) - 1])
        ]
        return numpy.stack(rows)


def render(template, messages):
    """The chat template as transformers applies it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


def header(path):
    """The metadata of a GGUF file (gguf's own reader takes minutes on a large vocabulary)."""
    plain = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    with open(path, "rb") as file:

        def take(kind):
            return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]

        def value(kind):
            if kind == 8:
                return file.read(take("Q")).decode()
            if kind == 9:
                of, count = take("I"), take("Q")
                return [value(of) for _ in range(count)]
            return take(plain[kind])

        assert file.read(4) == b"GGUF" and take("I") == 3
        take("Q")
        return {value(8): value(take("I")) for _ in range(take("Q"))}


def gguf_tokenizer(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def second_opinion(tokenizer, text, special, bos):
    """Ids from transformers, under llama.cpp's rules about control tokens and BOS."""
    backend = tokenizer._tokenizer
    backend.encode_special_tokens = not special
    ids = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return ([bos] if bos is not None else []) + ids


def prompts_of(path, skipped):
    head = header(path)
    template = head.get("tokenizer.chat_template")
    bos = head["tokenizer.ggml.bos_token_id"] if head.get("tokenizer.ggml.add_bos_token") else None
    llama = Llama(path, vocab_only=True)
    tokenizer = gguf_tokenizer(path)
    records, differing = [], []
    for prompt in json.loads((HERE / "prompts.json").read_text()):
        if prompt["name"] in skipped:
            continue
        record = {"name": prompt["name"]}
        if "messages" in prompt:
            if template is None:
                continue
            record["chat_text"] = render(template, prompt["messages"])
            applied = tokenizer.apply_chat_template(
                prompt["messages"], tokenize=False, add_generation_prompt=True
            )
            assert applied == record["chat_text"], prompt["name"]
        special = "chat_text" in record
        text = record["chat_text"] if special else prompt["text"]
        record["ids"] = llama.ids(text, special)
        other = second_opinion(tokenizer, text, special, bos)
        if other != record["ids"]:
            differing.append((prompt["name"], record["ids"], other))
        records.append(record)
    for name, ours, theirs in differing:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        show = lambda ids: [(i, tokenizer.convert_ids_to_tokens(i)) for i in ids[at : at + 6]]
        print(f"{path.name}: {name}: at {at}: llama.cpp {show(ours)}, transformers {show(theirs)}")
    return records, bool(differing)


def load_f32(path):
    """The model in f32. As of 5.23 the loader sets all of Gemma's configuration right; check() holds it to that."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    check(model)
    return model


def check(model):
    """Stops unless the configuration is what the two models were trained with."""
    config = model.config
    assert model.config._attn_implementation == "eager"
    assert next(model.parameters()).dtype.itemsize == 4
    if config.model_type == "gemma3_text":
        kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)]
        assert config.layer_types == kinds, config.layer_types
        assert config.sliding_window == 512, config.sliding_window
        rope = config.rope_parameters
        assert rope["sliding_attention"]["rope_theta"] == 1e4, rope
        assert rope["full_attention"]["rope_theta"] == 1e6, rope
        assert config.query_pre_attn_scalar == 256, config.query_pre_attn_scalar
        scale = model.model.embed_tokens.embed_scale  # the f32 nearest to the root of the width
        assert float(scale) == struct.unpack("f", struct.pack("f", 640**0.5))[0], scale
        assert config.final_logit_softcapping is None and config.attn_logit_softcapping is None
        assert config.hidden_activation == "gelu_pytorch_tanh"
        assert abs(config.rms_norm_eps - 1e-6) < 1e-12


def rounded(value):
    """The shortest decimal that reads back as the same f32."""
    import numpy

    return float(numpy.format_float_scientific(numpy.float32(value), unique=True))


def measure(model, ids, at):
    import torch

    with torch.inference_mode():
        first = None
        text, cache, step = list(ids), None, list(ids)
        for _ in range(GREEDY):
            out = model(torch.tensor([step]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            row = out.logits[0, -1].float()
            first = row if first is None else first
            step = [int(row.argmax())]
            text += step
        whole = model(torch.tensor([text[:-1]]), use_cache=False, logits_to_keep=GREEDY).logits[0].float()
    assert whole.argmax(-1).tolist() == text[len(ids) :], "with and without a cache differ"
    drift = float((whole[0] - first).abs().max())
    top = first.topk(TOP)
    pair = whole.topk(2).values
    return {
        "at": [rounded(v) for v in first[at]],
        "top": [[int(i), rounded(v)] for v, i in zip(top.values, top.indices)],
        "max_abs": rounded(first.abs().max()),
        "greedy": {
            "ids": text[len(ids) :],
            "margins": [rounded(round(float(a - b), 6)) for a, b in pair],
        },
    }, drift


def write(name, path, records, at):
    packages = ["transformers", "torch", "tokenizers", "gguf", "numpy"]
    versions = {p: importlib.metadata.version(p) for p in packages}
    import llama_cpp

    versions["llama-cpp-python"] = llama_cpp.__version__
    head = {
        "model": path.name,
        "written_by": "tests/real/reference.py",
        "versions": versions,
        "logit_ids": at,
    }
    body = ",\n".join("    " + json.dumps(r, ensure_ascii=False) for r in records)
    text = json.dumps(head, ensure_ascii=False, indent=None)[:-1]
    target = HERE / f"{name}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(f'{text},\n  "prompts": [\n{body}\n  ]\n}}\n')
    temporary.replace(target)
    print(f"{target.name}: {len(records)} prompts, {target.stat().st_size} bytes", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, default=HERE.parent.parent / "target" / "models")
    parser.add_argument("--ids", action="store_true")
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], default=[])
    options = parser.parse_args()
    for name in options.names or MODELS:
        path = options.models / MODELS[name]
        records, differing = prompts_of(path, SKIPPED[name])
        if differing:
            sys.exit(f"{name}: the two tokenizers differ (see above)")
        size = header(path)
        size = len(size["tokenizer.ggml.tokens"])
        at = [i * (size - 1) // (AT - 1) for i in range(AT)]
        write(name, path, records, at)
        if options.ids:
            continue
        model = load_f32(path)
        for record in records:
            found, drift = measure(model, record["ids"], at)
            record.update(found)
            print(f"{name}: {record['name']}: {len(record['ids'])} tokens, drift {drift:.1e}", flush=True)
        write(name, path, records, at)


if __name__ == "__main__":
    main()
