"""Makes packed/NAME/: quantized checkpoints of a tiny model, packed as GPTQ, AWQ and BitNet publish
them, and the logits that transformers finds in f32 with the weights they stand for.

    pip install torch transformers safetensors; python tests/graphs/packed.py

Packing and its inverse are written out in numpy here, from the published descriptions alone: nothing of
the program under test is used."""

import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "packed"
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # Nibble i of a word is output AWQ_ORDER[i] of its eight.
PROMPT = [6, 14, 24, 36, 50, 8, 26, 46, 10, 34, 60, 30]


def pack(values, bits, axis):
    """Codes into words of 32 bits along an axis, the first in the lowest bits."""
    per = 32 // bits
    values = np.moveaxis(values.astype(np.uint64), axis, 0)
    words = np.zeros((len(values) // per, *values.shape[1:]), np.uint64)
    for i in range(per):
        words |= values[i::per] << np.uint64(bits * i)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), 0, axis)


def quantize(weight, bits, group_of, groups, sym):
    """Round to nearest: codes [in, out], zeros and scales [groups, out], and what they stand for."""
    w, top = weight.T, 2**bits - 1
    codes = np.zeros(w.shape, np.int64)
    zeros = np.zeros((groups, w.shape[1]), np.int64)
    scales = np.zeros((groups, w.shape[1]), np.float16)
    value = np.zeros(w.shape, np.float64)
    for g in range(groups):
        own = group_of == g
        low, high = np.minimum(w[own].min(0), 0), np.maximum(w[own].max(0), 0)
        if sym:
            high = np.maximum(high, -low)
            low = -high
        scales[g] = (np.maximum(high - low, 1e-5) / top).astype(np.float16)
        s = scales[g].astype(np.float64)
        zeros[g] = 2 ** (bits - 1) if sym else np.clip(np.round(-low / s), 0, top)
        codes[own] = np.clip(np.round(w[own] / s) + zeros[g], 0, top)
        value[own] = (codes[own] - zeros[g]) * s
    return codes, zeros, scales, value.T.astype(np.float32)


def gptq(name, weight, bits, group, sym, order=False, plus=1):
    inputs = weight.shape[1]
    group = inputs if group < 0 else group
    of = np.arange(inputs) // group
    if order:
        of = np.random.default_rng(len(name)).permutation(of)
    codes, zeros, scales, value = quantize(weight, bits, of, inputs // group, sym)
    if plus:
        zeros[zeros == 0] = 1  # A stored -1 would spill over its neighbours.
        value = ((codes - zeros[of]) * scales.astype(np.float64)[of]).T.astype(np.float32)
    return value, {
        "qweight": pack(codes, bits, 0),
        "qzeros": pack(zeros - plus, bits, 1),
        "scales": scales,
        "g_idx": of.astype(np.int32),
    }


def awq(name, weight, group):
    of = np.arange(weight.shape[1]) // group
    codes, zeros, scales, value = quantize(weight, 4, of, of[-1] + 1, False)
    shuffled = lambda x: pack(x.reshape(len(x), -1, 8)[:, :, AWQ_ORDER].reshape(len(x), -1), 4, 1)
    return value, {"qweight": shuffled(codes), "qzeros": shuffled(zeros), "scales": scales}


def bitnet(name, weight, multiplies):
    scale = np.float32(np.abs(weight).mean())
    ternary = np.clip(np.round(weight / scale), -1, 1)
    stored = torch.tensor([scale if multiplies else 1 / scale]).to(torch.bfloat16)
    factor = stored.float().numpy()[0] if multiplies else 1 / stored.float().numpy()[0]
    quarters = np.split((ternary + 1).astype(np.uint8), 4)
    packed = sum(quarter << (2 * i) for i, quarter in enumerate(quarters)).astype(np.uint8)
    return (ternary * factor).astype(np.float32), {"weight": packed, "weight_scale": stored}


def make(folder, config, quantization, packer, inter=64):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight":
                continue
            if "_proj.weight" in name:
                wide = 1.7 / max(tensor.shape) ** 0.5
                weight = (torch.randn(tensor.shape) * wide).numpy()
                value, parts = packer(name, weight)
                tensor.copy_(torch.from_numpy(value))
                stem = name.removesuffix(".weight")
                for part, array in parts.items():
                    array = array if torch.is_tensor(array) else torch.from_numpy(np.ascontiguousarray(array))
                    tensors[f"{stem}.{part}"] = array
            else:
                tensor.copy_((torch.randn(tensor.shape) * 0.5 + (1 if "norm" in name else 0)).half().float())
                tensors[name] = tensor.half().clone()
        model.tie_weights()
        logits = model(torch.tensor([PROMPT])).logits[0]
    write(folder, config, quantization, tensors, logits)


def write(folder, config, quantization, tensors, logits):
    path = HERE / folder
    path.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in config.to_dict().items() if k not in ("dtype", "transformers_version")}
    (path / "config.json").write_text(json.dumps({**settings, "quantization_config": quantization}, indent=1))
    save_file(tensors, path / "model.safetensors")
    rows = [0, 5, len(PROMPT) - 1]
    (path / "logits.json").write_text(json.dumps({
        "prompt": PROMPT, "rows": rows, "logits": [[float(f"{x:.9g}") for x in logits[r].tolist()] for r in rows],
    }))


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)


def mxfp4(weight):
    """[experts, in, out] to blocks [experts, out, in / 32, 16] and exponents, and what they stand for."""
    w = np.swapaxes(weight.astype(np.float64), 1, 2)
    w = w.reshape(*w.shape[:2], -1, 32)
    exponent = np.floor(np.log2(np.maximum(np.abs(w).max(-1), 1e-30))) - 2
    scaled = w / 2.0 ** exponent[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - FP4).argmin(-1)
    value = (np.sign(scaled) * FP4[codes] * 2.0 ** exponent[..., None]).reshape(*w.shape[:2], -1)
    codes = (codes + 8 * (scaled < 0)).astype(np.uint8)
    return (np.ascontiguousarray(np.swapaxes(value, 1, 2)).astype(np.float32),
            *map(np.ascontiguousarray, (codes[..., 0::2] | codes[..., 1::2] << 4, (exponent + 127).astype(np.uint8))))


def make_experts(folder, config):
    """gpt-oss as it is published, its experts in MXFP4; but all else in F16, not BF16, which the CPU
    multiplies less exactly."""
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    tensors = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                wide = 1.7 / max(tensor.shape[1:]) ** 0.5
                value, blocks, scales = mxfp4((torch.randn(tensor.shape) * wide).numpy())
                tensor.copy_(torch.from_numpy(value))
                tensors[name + "_blocks"], tensors[name + "_scales"] = torch.from_numpy(blocks), torch.from_numpy(scales)
                continue
            wide = 1.0 if "embed" in name else 1.7 / max(tensor.shape) ** 0.5 if tensor.dim() > 1 else 0.25
            value = torch.randn(tensor.shape) * wide + (1 if "norm" in name else 0)
            tensor.copy_(value.half().float())
            tensors[name] = tensor.half().clone()
        logits = model(torch.tensor([PROMPT])).logits[0]
    write(folder, config, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
          tensors, logits)


def main():
    shape = dict(vocab_size=61, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                 head_dim=32, max_position_embeddings=128, tie_word_embeddings=True)
    llama = transformers.LlamaConfig(**shape, intermediate_size=128)
    for name, bits, group, sym, order, plus in [
        ("gptq4", 4, 32, True, False, 1),
        ("gptq4-zeros", 4, 64, False, False, 1),
        ("gptq4-v2", 4, -1, False, False, 0),
        ("gptq4-order", 4, 32, False, True, 1),
        ("gptq2", 2, 64, True, False, 1),
        ("gptq2-zeros", 2, 32, False, False, 0),
        ("gptq8", 8, 32, True, False, 1),
        ("gptq8-zeros", 8, 64, False, False, 0),
    ]:
        quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": order,
                        "checkpoint_format": "gptq" if plus else "gptq_v2"}
        make(name, llama, quantization, lambda n, w: gptq(n, w, bits, group, sym, order, plus))
    make("awq", llama, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
         lambda n, w: awq(n, w, 32))
    ternary = transformers.BitNetConfig(**shape, intermediate_size=256)
    make("bitnet", ternary, {"quant_method": "bitnet"}, lambda n, w: bitnet(n, w, False))
    make("bitnet-auto", ternary, {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                  "quantization_mode": "offline"}, lambda n, w: bitnet(n, w, True))

    make_experts("mxfp4", transformers.GptOssConfig(
        vocab_size=61, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=7,
        max_position_embeddings=128, rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0,
        original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0, truncate=False)))


if __name__ == "__main__":
    main()
