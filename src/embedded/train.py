"""Make tiny.gguf, the model embedded in the binary, from what corpus.py wrote to DATA.

    train.py train DATA RUN           train the teachers and the student (one CUDA device, minutes)
    train.py sample DATA RUN PROMPT   continue a prompt with the student, on rounded weights
    train.py export DATA RUN GGUF     quantize the student and write the GGUF (needs no torch)

README.md has the figures, the commands and the versions used.

The text is scarce (about 3 million tokens), so the small model does not learn from it alone: larger
models ("teachers") are trained first with heavy dropout, and the small one ("student") learns from
the text and from the mean of the teachers' next-token distributions. In its last third the student
runs on weights rounded to the blocks the file will hold (straight-through gradients), so that four
bits a weight cost it next to nothing.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from corpus import END, VOCAB

CONTEXT = 512


# -------------------------------------------------------------------------------------------- model
@dataclass
class Shape:
    dim: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 512
    dropout: float = 0.0
    theta: float = 10000.0
    eps: float = 1e-5


STUDENT = Shape(dropout=0.05)
TEACHER = Shape(dim=512, layers=8, heads=8, kv_heads=8, ffn=1408, dropout=0.25)


def build(shape):
    """A Llama: RMSNorm, rope on neighbouring pairs, grouped queries, SwiGLU, tied embedding."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    def blocks_q4_0(w):
        """Round to Q4_0: 32 weights share a half-precision scale, the largest one maps to -8."""
        x = w.detach().float().reshape(-1, 32)
        d = x.gather(1, x.abs().argmax(1, keepdim=True)) / -8
        q = (x * torch.where(d == 0, 0, 1 / d) + 8.5).trunc().clamp(0, 15) - 8
        return w + ((q * d.half().float()).reshape(w.shape) - w).detach()

    def blocks_q8_0(w):
        """Round to Q8_0: 32 weights share a half-precision scale, the largest one maps to 127."""
        x = w.detach().float().reshape(-1, 32)
        d = x.abs().amax(1, keepdim=True) / 127
        q = (x * torch.where(d == 0, 0, 1 / d)).round()
        return w + ((q * d.half().float()).reshape(w.shape) - w).detach()

    class Linear(nn.Module):
        def __init__(self, columns, rows, std):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(rows, columns) * std)
            self.rounded = False

        def forward(self, x):
            return F.linear(x, blocks_q4_0(self.weight) if self.rounded else self.weight)

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape.dim))

        def forward(self, x):
            return F.rms_norm(x.float(), (shape.dim,), self.weight, shape.eps)

    head_dim = shape.dim // shape.heads

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            std = shape.dim**-0.5 * 0.5
            out = std / (2 * shape.layers) ** 0.5
            self.attn_norm, self.ffn_norm = Norm(), Norm()
            self.attn_q = Linear(shape.dim, shape.dim, std)
            self.attn_k = Linear(shape.dim, shape.kv_heads * head_dim, std)
            self.attn_v = Linear(shape.dim, shape.kv_heads * head_dim, std)
            self.attn_output = Linear(shape.dim, shape.dim, out)
            self.ffn_gate = Linear(shape.dim, shape.ffn, std)
            self.ffn_up = Linear(shape.dim, shape.ffn, std)
            self.ffn_down = Linear(shape.ffn, shape.dim, out)

        def rope(self, x, angle):
            a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = angle.cos(), angle.sin()
            return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)

        def forward(self, x, angle):
            n, t, _ = x.shape
            h = self.attn_norm(x)
            q, k, v = (
                project(h).view(n, t, -1, head_dim).transpose(1, 2)
                for project in (self.attn_q, self.attn_k, self.attn_v)
            )
            q, k = self.rope(q, angle), self.rope(k, angle)
            if shape.kv_heads != shape.heads:
                k, v = (y.repeat_interleave(shape.heads // shape.kv_heads, 1) for y in (k, v))
            a = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
            a = self.attn_output(a.transpose(1, 2).reshape(n, t, shape.dim))
            x = x + F.dropout(a, shape.dropout, self.training)
            h = self.ffn_norm(x)
            f = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
            return x + F.dropout(f, shape.dropout, self.training)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token_embd = nn.Parameter(torch.randn(VOCAB, shape.dim) * 0.03)
            self.blk = nn.ModuleList(Block() for _ in range(shape.layers))
            self.output_norm = Norm()
            self.rounded = False

        def round_weights(self, on):
            self.rounded = on
            for module in self.modules():
                if isinstance(module, Linear):
                    module.rounded = on

        def forward(self, ids):
            table = blocks_q8_0(self.token_embd) if self.rounded else self.token_embd
            x = F.dropout(F.embedding(ids, table), shape.dropout, self.training)
            pairs = torch.arange(0, head_dim, 2, device=ids.device) / head_dim
            angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * shape.theta**-pairs
            for block in self.blk:
                x = block(x, angle)
            return F.linear(self.output_norm(x), table)

    return Model()


# ----------------------------------------------------------------------------------------- training


@dataclass
class Recipe:
    steps: int
    seconds: float  # the schedule ends early when the steps take longer than this
    rate: float
    decay: float
    batch: int = 64
    tales: float = 0.35  # share of the windows drawn from the tales
    soft: float = 0.0  # weight of the teachers' distribution in the loss
    rounded_from: float = 2.0  # share of the schedule after which the weights are rounded


TEACHERS = 2
TEACHER_RECIPE = Recipe(steps=1800, seconds=80, rate=1.5e-3, decay=0.3)
STUDENT_RECIPE = Recipe(steps=9000, seconds=255, rate=3e-3, decay=0.05, soft=0.8, rounded_from=0.67)


class Muon:
    """Momentum whose update is orthogonalised (Newton-Schulz), all matrices of a shape at once."""

    def __init__(self, matrices, decay):
        import torch

        shapes = {}
        for p in matrices:
            shapes.setdefault(tuple(p.shape), []).append(p)
        self.groups = [(ps, torch.zeros_like(torch.stack(ps))) for ps in shapes.values()]
        self.decay = decay
        if matrices[0].is_cuda:
            self.direction = torch.compile(self.direction, dynamic=False)

    @staticmethod
    def direction(grads, momentum):
        import torch

        grads = torch.stack(grads)
        momentum.lerp_(grads, 0.05)
        x = grads.lerp(momentum, 0.95).bfloat16()
        tall = x.shape[1] > x.shape[2]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
        x = x.mT if tall else x
        return x.float() * 0.2 * max(x.shape[1:]) ** 0.5  # the size of an AdamW update

    def step(self, rate):
        import torch

        with torch.no_grad():
            for ps, momentum in self.groups:
                update = self.direction([p.grad for p in ps], momentum)
                torch._foreach_mul_(ps, 1 - rate * self.decay)
                torch._foreach_add_(ps, list(update.unbind()), alpha=-rate)


def fit(model, recipe, data, device, teachers=(), log=print):
    import torch
    import torch.nn.functional as F

    def load(name):
        ids = np.fromfile(data / f"{name}.u16", np.uint16)
        return torch.from_numpy(ids.astype(np.int64)).to(device)

    parts = {n: load(n) for n in ("tales", "other", "val-tales", "val-other")}
    facts = json.loads((data / "corpus.json").read_text())
    window = torch.arange(CONTEXT + 1, device=device)

    def autocast():
        return torch.autocast(device.type, torch.bfloat16)

    def batch():
        ids = []
        count = int(torch.binomial(torch.tensor(float(recipe.batch)), torch.tensor(recipe.tales)))
        for name, n in (("tales", count), ("other", recipe.batch - count)):
            at = torch.randint(len(parts[name]) - CONTEXT - 1, (n, 1), device=device)
            ids.append(parts[name][at + window])
        ids = torch.cat(ids)
        return ids[:, :-1], ids[:, 1:]

    def loss_of(ids, target):
        with autocast():
            logits = model(ids)
            if teachers:
                with torch.no_grad():
                    soft = sum(F.softmax(t(ids).float(), -1) for t in teachers) / len(teachers)
        score = F.log_softmax(logits.float(), -1)
        loss = F.nll_loss(score.flatten(0, 1), target.flatten())
        if teachers:
            loss = (1 - recipe.soft) * loss - recipe.soft * (soft * score).sum(-1).mean()
        return loss

    def evaluate():
        """Nats a token and bits a byte on the held-out documents, in windows of CONTEXT tokens."""
        model.eval()
        result = {}
        with torch.no_grad(), autocast():
            for name in ("val-tales", "val-other"):
                n = (len(parts[name]) - 1) // CONTEXT
                x = parts[name][: n * CONTEXT].view(n, CONTEXT)
                y = parts[name][1 : n * CONTEXT + 1].view(n, CONTEXT)
                total = 0.0
                for i in range(0, n, 64):
                    logits = model(x[i : i + 64]).float().flatten(0, 1)
                    target = y[i : i + 64].flatten()
                    total += F.cross_entropy(logits, target, reduction="sum").item()
                nats = total / (n * CONTEXT)
                bits = nats * facts[name]["tokens"] / facts[name]["bytes"] / math.log(2)
                result[name] = {"nats_per_token": round(nats, 4), "bits_per_byte": round(bits, 4)}
        model.train()
        return result

    torch._dynamo.reset()
    named = list(model.named_parameters())
    muon = Muon([p for n, p in named if p.ndim == 2 and n != "token_embd"], recipe.decay)
    rest = [p for n, p in named if p.ndim != 2 or n == "token_embd"]
    adam = torch.optim.AdamW(rest, weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    step_loss = torch.compile(loss_of) if device.type == "cuda" else loss_of
    step, clock, rounded = 0, 0.0, False
    model.train()
    while (done := max(step / recipe.steps, clock / recipe.seconds)) < 1:
        if done >= recipe.rounded_from and not rounded:
            log("before rounding", evaluate())
            rounded = True
            model.round_weights(True)
            log("just rounded", evaluate())
        began = time.time()
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        rate = recipe.rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * cosine)
        adam.param_groups[0]["lr"] = rate
        loss = step_loss(*batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(rate)
        adam.step()
        model.zero_grad(set_to_none=True)
        took = time.time() - began
        clock += took if took < 5 else 0  # a step that compiles does not count
        step += 1
        if step % 500 == 1:
            log(f"step {step} loss {loss.item():.3f} {clock:.0f} s", evaluate())
    with torch.no_grad():
        for p in model.parameters():  # what is saved is half precision: judge that
            p.copy_(p.half())
    figures = {"parameters": sum(p.numel() for p in model.parameters()), "rounded": evaluate()}
    if rounded:
        model.round_weights(False)
        figures["unrounded"] = evaluate()
    else:
        figures["unrounded"] = figures.pop("rounded")
    return figures | {"steps": step, "seconds": round(clock), "recipe": asdict(recipe)}


def train(data, run, scale=1):
    """`scale` multiplies every number of steps: 0.02 tries the whole path in a minute."""
    import torch

    data, run = Path(data), Path(run)
    run.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    figures = {"torch": torch.__version__, "device": str(device)}

    def log(*words):
        print(*words, flush=True)

    teachers = []
    teach, learn = (
        replace(r, steps=round(r.steps * float(scale))) for r in (TEACHER_RECIPE, STUDENT_RECIPE)
    )
    for seed in range(TEACHERS):
        torch.manual_seed(seed)
        model = build(TEACHER).to(device)
        figures[f"teacher {seed}"] = fit(model, teach, data, device, log=log)
        teachers.append(model.eval().requires_grad_(False).bfloat16())
    torch.manual_seed(100)
    model = build(STUDENT).to(device)
    figures["student"] = fit(model, learn, data, device, teachers, log)
    weights = {n: p.cpu().half().numpy() for n, p in model.state_dict().items()}
    np.savez(run / "student.npz", **weights)
    (run / "figures.json").write_text(json.dumps(figures, indent=1))
    log(json.dumps(figures, indent=1))


def sample(data, run, prompt, temperature=0.8, length=200, count=3):
    import torch
    from tokenizers import Tokenizer

    model = build(STUDENT)
    weights = np.load(Path(run) / "student.npz")
    model.load_state_dict({n: torch.from_numpy(weights[n]).float() for n in weights})
    model.eval().round_weights(True)
    tokenizer = Tokenizer.from_file(str(Path(data) / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(prompt).ids] * int(count))
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(int(length)):
            scores = model(ids[:, -CONTEXT:])[:, -1] / float(temperature)
            ids = torch.cat((ids, torch.multinomial(scores.softmax(-1), 1)), 1)
    for row in ids.tolist():
        print(tokenizer.decode(row), "\n---")


# ------------------------------------------------------------------------------------------- export


def export(data, run, path):
    import gguf
    from gguf import GGMLQuantizationType as Type

    shape, limit = STUDENT, 4 << 20
    weights = np.load(Path(run) / "student.npz")
    tokenizer = json.loads((Path(data) / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    end = vocabulary.index(END)
    count = sum(weights[name].size for name in weights)
    file = gguf.GGUFWriter(path, "llama")
    file.add_name("Tiny Tales")
    file.add_description("A tiny story model trained from scratch on public-domain English prose.")
    file.add_license("cc0-1.0")
    file.add_languages(["en"])
    file.add_tags(["text-generation"])
    file.add_size_label(f"{count / 1e6:.1f}M")
    file.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    file.add_quantization_version(gguf.GGML_QUANT_VERSION)
    file.add_context_length(CONTEXT)
    file.add_embedding_length(shape.dim)
    file.add_block_count(shape.layers)
    file.add_feed_forward_length(shape.ffn)
    file.add_head_count(shape.heads)
    file.add_head_count_kv(shape.kv_heads)
    file.add_rope_dimension_count(shape.dim // shape.heads)
    file.add_rope_freq_base(shape.theta)
    file.add_layer_norm_rms_eps(shape.eps)
    file.add_vocab_size(VOCAB)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(vocabulary)
    types = [gguf.TokenType.NORMAL] * VOCAB
    types[end] = gguf.TokenType.CONTROL
    file.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    file.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    file.add_bos_token_id(end)
    file.add_eos_token_id(end)
    file.add_add_bos_token(False)
    file.add_add_eos_token(False)
    for name in weights:
        values = weights[name].astype(np.float32)
        full = name if name.endswith(".weight") else name + ".weight"
        matrix = Type.Q8_0 if full == "token_embd.weight" else Type.Q4_0
        kind = Type.F32 if values.ndim == 1 else matrix
        file.add_tensor(full, gguf.quants.quantize(values, kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    size = Path(path).stat().st_size
    print(f"{path}: {size} bytes, {count} parameters")
    if size > limit:
        sys.exit(f"{path} is larger than {limit} bytes")


if __name__ == "__main__":
    commands = {"train": train, "sample": sample, "export": export}
    commands[sys.argv[1]](*sys.argv[2:])
