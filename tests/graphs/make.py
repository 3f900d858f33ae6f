"""Makes the fixtures of the architectures: what transformers computes with tiny random models.

    python tests/graphs/make.py            all of them
    python tests/graphs/make.py llama ...  some

Needs torch and transformers; the versions are written into each fixture. A fixture is the model's
config.json, the names and shapes of its tensors, the logits of a prompt and 64 greedy tokens, all in
f32. Weights are not stored: numbers() gives the same ones here and in the test.
"""

import base64
import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers as T
from safetensors import safe_open

BASE = dict(
    vocab_size=61, hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=40)
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
LONG = dict(rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.75,
            short_factor=[1.0 + i / 7 for i in range(3)], long_factor=[2.0 + i for i in range(3)])
MODELS = {
    "llama": ("LlamaConfig", dict()),
    "llama3": ("LlamaConfig", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama-linear": ("LlamaConfig", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0),
                                         attention_bias=True)),
    "llama-yarn": ("LlamaConfig", dict(rope_parameters=YARN)),
    "mistral": ("MistralConfig", dict(sliding_window=7)),
    "mixtral": ("MixtralConfig", dict(num_local_experts=5, num_experts_per_tok=2)),
    "qwen2": ("Qwen2Config", dict()),
    "qwen2moe": ("Qwen2MoeConfig", dict(MOE, shared_expert_intermediate_size=56)),
    "qwen3": ("Qwen3Config", dict(head_dim=16)),
    "qwen3moe": ("Qwen3MoeConfig", dict(MOE, head_dim=16, norm_topk_prob=True)),
    "gemma": ("GemmaConfig", dict(head_dim=16)),
    "gemma2": ("Gemma2Config", dict(head_dim=16, sliding_window=7, query_pre_attn_scalar=20)),
    "gemma3": ("Gemma3TextConfig", dict(head_dim=16, sliding_window=7, num_hidden_layers=7,
                                        query_pre_attn_scalar=16)),
    "phi2": ("PhiConfig", dict(num_key_value_heads=6, partial_rotary_factor=0.5)),
    "phi3": ("Phi3Config", dict(sliding_window=9)),
    "phi4": ("Phi3Config", dict(rope_parameters=LONG, original_max_position_embeddings=64)),
    # The prompt is longer than the old context: long factors from the first token on.
    "phi4-long": ("Phi3Config", dict(rope_parameters=LONG, original_max_position_embeddings=16)),
    "gpt2": ("GPT2Config", dict(n_embd=48, n_layer=3, n_head=6, n_positions=96)),
    "gptneox": ("GPTNeoXConfig", dict(num_key_value_heads=6)),
    "gptneox-serial": ("GPTNeoXConfig", dict(num_key_value_heads=6, use_parallel_residual=False)),
    "falcon": ("FalconConfig", dict(new_decoder_architecture=False, multi_query=True, parallel_attn=True,
                                    bias=False, alibi=False)),
    "falcon-new": ("FalconConfig", dict(new_decoder_architecture=True, num_kv_heads=2, bias=False, alibi=False)),
    "stablelm": ("StableLmConfig", dict(use_qkv_bias=True, partial_rotary_factor=0.5)),
    "stablelm-parallel": ("StableLmConfig", dict(qk_layernorm=True, use_parallel_residual=True,
                                                 partial_rotary_factor=0.5)),
    "olmo2": ("Olmo2Config", dict()),
    "olmoe": ("OlmoeConfig", dict(num_experts=5, num_experts_per_tok=2)),
    "granite": ("GraniteConfig", dict(embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2,
                                      logits_scaling=3.0)),
    "starcoder2": ("Starcoder2Config", dict(sliding_window=7, use_bias=True)),
    "cohere": ("CohereConfig", dict(logit_scale=0.25)),
    "cohere-plus": ("CohereConfig", dict(logit_scale=0.25, use_qk_norm=True)),
    "smollm3": ("SmolLM3Config", dict(num_hidden_layers=5, no_rope_layer_interval=4)),
    "gpt-oss": ("GptOssConfig", dict(num_local_experts=5, num_experts_per_tok=2, head_dim=16, sliding_window=7,
                                     rope_parameters=dict(YARN, truncate=False, beta_fast=32.0, beta_slow=1.0))),
    "bitnet": ("BitNetConfig", dict()),
    "bitnet-silu": ("BitNetConfig", dict(hidden_act="silu")),
}


def numbers(name, shape):
    """Numbers that depend on the tensor's name and shape alone."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    count = math.prod(shape)
    out = np.empty(count, dtype=np.float32)
    for i in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out[i] = np.float32(state >> 40) / np.float32(2**23) - np.float32(1.0)
    if len(shape) > 1:
        # A table's rows are of size 1, a matrix keeps the size of its rows.
        table = any(part in name for part in ("embed", "wte", "wpe"))
        size, middle = (1.0 if table else 1.7 / math.sqrt(max(shape[-2:]))), 0.0
    elif name.endswith("weight"):
        size, middle = 0.25, 1.0
    else:
        size, middle = 0.25, 0.0
    return (np.float32(middle) + np.float32(size) * out).reshape(shape)


def clear(model):
    """A prompt, its logits, 64 greedy tokens, and the least margin between first and second choice.

    Caches in f16 move logits by up to a thousandth of the greatest. A choice closer than that is
    nobody's error, so the first of 200 prompts is taken whose choices are all clear, or the clearest.
    """
    best = None
    for shift in range(200):
        prompt = [(i * (7 + shift) + 3 + shift + i * i) % 58 + 3 for i in range(24)]
        ids, margin = list(prompt), float("inf")
        with torch.inference_mode():
            out = model(torch.tensor([prompt]), use_cache=True)
            logits = out.logits[0].float().numpy()
            for _ in range(64):
                step = out.logits[0, -1].float()
                top = torch.topk(step, 2).values
                margin = min(margin, float((top[0] - top[1]) / step.abs().max()))
                ids.append(int(step.argmax()))
                if margin < 4e-3 and best and margin < best[3]:
                    break
                out = model(torch.tensor([ids[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        if len(ids) == 88 and (best is None or margin > best[3]):
            best = (prompt, logits, ids[24:], margin)
        if best and best[3] >= 4e-3:
            break
    return best


def make(name, folder):
    config_name, changes = MODELS[name]
    config = getattr(T, config_name)(**{**BASE, **changes})
    config._attn_implementation = "eager"
    model = T.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with tempfile.TemporaryDirectory() as first:
        model.save_pretrained(first)
        json_config = json.loads((pathlib.Path(first) / "config.json").read_text())
        shapes = {}
        with safe_open(pathlib.Path(first) / "model.safetensors", "pt") as file:
            for key in sorted(file.keys()):
                shapes[key] = list(file.get_slice(key).get_shape())
        from safetensors.torch import save_file
        tensors = {key: torch.from_numpy(numbers(key, shape)) for key, shape in shapes.items()}
        save_file(tensors, pathlib.Path(first) / "model.safetensors", metadata={"format": "pt"})
        model = T.AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32, attn_implementation="eager").eval()
    prompt, logits, greedy, margin = clear(model)
    fixture = {
        "versions": {"transformers": T.__version__, "torch": torch.__version__},
        "config": json_config,
        "tensors": shapes,
        "prompt": prompt,
        "greedy": greedy,
        # Every third row, as f32 in base64.
        "rows": list(range(2, 24, 3)),
        "logits": base64.b64encode(logits[2::3].astype("<f4").tobytes()).decode(),
    }
    text = json.dumps(fixture, separators=(",", ":"))
    (folder / f"{name}.json").write_text(text + "\n")
    print(name, len(text), "margin", margin, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    folder = pathlib.Path(__file__).parent / "fixtures"
    for name in sys.argv[1:] or MODELS:
        make(name, folder)
