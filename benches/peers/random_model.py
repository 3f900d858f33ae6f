#!/usr/bin/env python3
"""A model file of a known shape with random weights, to measure sizes that are not at hand.

    python3 benches/peers/random_model.py OUT.gguf --shape llama-3.2-1b --tokenizer MODEL.gguf [--layers N] [--vocabulary N]

Needs numpy and gguf. Matrices are F16, normal with a deviation of 1 / sqrt(inputs), so rows keep
their size from layer to layer; norms are ones. The tokenizer is that of --tokenizer, padded with
unused tokens to the shape's vocabulary, so that whoever loads real files loads this one. One tensor
is in memory at a time. The same arguments give the same bytes.
"""

import argparse

import gguf
import numpy as np

# layers, dim, ffn, heads, kv heads, head dim, vocabulary, tied head, (experts, picked)
SHAPES = {
    "llama-3.2-1b": (16, 2048, 8192, 32, 8, 64, 128256, True, None),
    "llama-3.2-3b": (28, 3072, 8192, 24, 8, 128, 128256, True, None),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128, 128256, False, None),
    "smollm2-135m": (30, 576, 1536, 9, 3, 64, 49152, True, None),
    "qwen3-30b-a3b": (48, 2048, 768, 32, 4, 128, 151936, False, (128, 8)),
}


def tensors(shape):
    """Names and shapes, slowest dimension first, in the file's order."""
    layers, dim, ffn, heads, kv_heads, head, vocabulary, tied, mixture = shape
    yield "token_embd.weight", (vocabulary, dim)
    for i in range(layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", (dim,)
        yield p + "attn_q.weight", (heads * head, dim)
        yield p + "attn_k.weight", (kv_heads * head, dim)
        yield p + "attn_v.weight", (kv_heads * head, dim)
        yield p + "attn_output.weight", (dim, heads * head)
        yield p + "ffn_norm.weight", (dim,)
        if mixture:
            # Qwen3's, whose heads have norms.
            yield p + "attn_q_norm.weight", (head,)
            yield p + "attn_k_norm.weight", (head,)
            yield p + "ffn_gate_inp.weight", (mixture[0], dim)
        name, experts = ("_exps.weight", mixture[:1]) if mixture else (".weight", ())
        yield p + "ffn_gate" + name, (*experts, ffn, dim)
        yield p + "ffn_up" + name, (*experts, ffn, dim)
        yield p + "ffn_down" + name, (*experts, dim, ffn)
    yield "output_norm.weight", (dim,)
    if not tied:
        yield "output.weight", (vocabulary, dim)


def tokenizer(writer, path, vocabulary):
    """Copies the tokenizer's keys; lists with an entry a token grow to the vocabulary."""
    fields = gguf.GGUFReader(path).fields
    have = len(fields["tokenizer.ggml.tokens"].data)
    if have > vocabulary:
        raise SystemExit(f"{path}: {have} tokens are more than the shape's {vocabulary}")
    pad = range(have, vocabulary)
    more = {
        "tokenizer.ggml.tokens": [f"<unused {i}>" for i in pad],
        "tokenizer.ggml.scores": [0.0] * len(pad),
        "tokenizer.ggml.token_type": [int(gguf.TokenType.UNUSED)] * len(pad),
    }
    for key, field in fields.items():
        if key.startswith("tokenizer."):
            value = field.contents()
            sub = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, value + more.get(key, []) if sub else value, field.types[0], sub)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", metavar="FILE", required=True)
    parser.add_argument("--layers", type=int, help="in place of the shape's")
    parser.add_argument("--vocabulary", type=int, help="in place of the shape's")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = (options.layers, *shape[1:])
    if options.vocabulary:
        shape = (*shape[:6], options.vocabulary, *shape[7:])
    layers, dim, ffn, heads, kv_heads, head, vocabulary, _, mixture = shape

    writer = gguf.GGUFWriter(options.out, "qwen3moe" if mixture else "llama")
    writer.add_name(f"{options.shape}, {layers} layers, random")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(ffn)
    if mixture:
        writer.add_expert_count(mixture[0])
        writer.add_expert_used_count(mixture[1])
        writer.add_expert_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    tokenizer(writer, options.tokenizer, vocabulary)

    listed = list(tensors(shape))
    for name, dims in listed:
        dtype = np.dtype(np.float16 if len(dims) > 1 else np.float32)
        writer.add_tensor_info(name, dims, dtype, int(np.prod(dims)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(options.seed)
    for name, dims in listed:
        if len(dims) == 1:
            values = np.ones(dims, np.float32)
        else:
            values = random.standard_normal(dims, np.float32)
            values *= dims[-1] ** -0.5
            values = values.astype(np.float16)
        writer.write_tensor_data(values)
    writer.close()


if __name__ == "__main__":
    main()
