"""Makes fixtures/tokenizers.json: tiny tokenizers of every kind that is read, and what Hugging Face's
`tokenizers` makes of awkward texts with them.

    pip install tokenizers; python tests/text/make.py

With folders that hold a `tokenizer.json`, writes their `ids.json` instead, for `real.rs`.

The tokenizers are trained on the few sentences below, so that the files stay small. Patterns and
chains are those of published models; what they are named after is only where they come from."""

import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

CORPUS = [
    "The old man looked out over the sea, and the sea looked back at the old man.",
    "It's 1234 o'clock; they're here and we'll see 5678 ships by 90.12 in the year 2024!",
    "for (int i = 0; i < 10; i++) {\n    print(i, 'hello world');\n\n}\n",
    "Über naïve café, déjà vu: größe straße. Привет, мир! Как дела? 日本語のテキスト、東京。 한국어",
    "    indented\ttabs\r\nlines\r\n\r\nand   spaces   ",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "Hello world",
    " Hello  world ",
    "The old man looked out over the sea",
    "It's they're WE'LL I'D don'T ''s",
    "1 12 123 1234 12345678901234567890 1.5e-10 ½ ² ٣٤ ２３ Ⅷ",
    "a\n\nb\r\n\r\nc\td  \n  e\n",
    "  \n \t leading and trailing \u00a0\u3000 \n  ",
    "Привет, мир! Как дела? ЁЖ",
    "日本語のテキスト、東京。中文字符 한국어 ไทย हिन्दी العربية עברית",
    "e\u0301 caf\u00e9 cafe\u0301 n\u0303 \u1e9b\u0323 \ufb01 \u212b A\u030a \uac00 \u1100\u1161 \u00bd\u2460",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ 🦀",
    "<s>mark</s> <|im_start|>user\nhi<|im_end|>\n <|end|>  \n x<unk>y",
    "<tool> a<tool>b  <left> x <both>  y word<single> <single>word <single> x",
    "for (int i = 0; i < 10; i++) { print(i, 'hello world'); }",
    "!!??...---===+++$$$^^^~~~|||```<<<>>> «quoted» — “curly” … ¿¡",
    "supercalifragilisticexpialidocious HTTPServerError camelCaseWord iPhone X1Y2",
    "▁already▁there ▁ Ġ Ċ",
    "\u0000\u0001\u007f\u0085\u2028\u200b\ufeff\ufffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "tab\tab\u000b\u000cff  nbsp\u00a0\u00a0x",
    "x\u00b2\u00b3\u00b9\u00bc 3\u00be",
]

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
DEEPSEEK = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]
MARKS = [AddedToken(t, special=True) for t in ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>"]]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def bytes_after(*stages, regex=False, prefix=False):
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    return pre_tokenizers.Sequence([*stages, level])


def byte_level(pre, normalizer=None, added=(), size=420, **bpe):
    t = Tokenizer(models.BPE(**bpe))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    t.add_tokens(MARKS)
    t.add_tokens(list(added))
    return t


def characters(normalizer=None, pre=None, decoder=None, fallback=True, added=(), train_pre=None, **bpe):
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True, **bpe))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = train_pre or pre_tokenizers.Metaspace(prepend_scheme="always")
    if train_pre is None and normalizer:
        t.normalizer = None
    specials = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if fallback else [])
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=len(specials) + 220, special_tokens=specials, show_progress=False))
    # Byte tokens are not added tokens in published files.
    made = json.loads(t.to_str())
    made["added_tokens"] = [a for a in made["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(made))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    elif normalizer:
        made = json.loads(t.to_str())
        made["pre_tokenizer"] = None
        t = Tokenizer.from_str(json.dumps(made))
    t.decoder = decoder
    t.add_tokens(list(added))
    return t


def template(t, *begin, end=()):
    ids = [(name, t.token_to_id(name)) for name in {*begin, *end}]
    t.post_processor = processors.TemplateProcessing(single=" ".join([*begin, "$A", *end]), special_tokens=ids)
    return t


LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
FALLBACK = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIPPED = decoders.Sequence([*FALLBACK, decoders.Strip(" ", 1, 0)])
ODD = [
    AddedToken("<tool>", normalized=False),
    AddedToken("<left>", lstrip=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("<single>", single_word=True, normalized=False),
]


def kinds():
    yield "gpt2", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    yield "prefix space", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    yield "llama3", template(byte_level(bytes_after(split(GPT4)), ignore_merges=True), "<s>")
    yield "qwen", byte_level(bytes_after(split(QWEN)), normalizers.NFC(), ODD)
    yield "smollm", byte_level(bytes_after(pre_tokenizers.Digits(individual_digits=True), regex=True))
    yield "falcon", byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        split("[0-9][0-9][0-9]"),
    ]))
    yield "neox", byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        normalizers.NFC(),
        [AddedToken(" " * n, normalized=True) for n in (4, 3, 2)] + [AddedToken("<tool>", normalized=True)],
    )
    yield "cl100k", byte_level(bytes_after(split(CL100K)))
    yield "cl100k removed", byte_level(bytes_after(split(GPT4, "removed", True)))
    yield "o200k", byte_level(bytes_after(split(O200K)))
    yield "deepseek", byte_level(bytes_after(*[split(p) for p in DEEPSEEK]))
    for behavior in ["removed", "merged_with_previous", "merged_with_next", "contiguous"]:
        yield behavior, byte_level(bytes_after(split(r"\s", behavior)), size=300)
        yield behavior + " inverted", byte_level(bytes_after(split(r"[a-z]", behavior, True)), size=280)
    yield "normal forms", byte_level(
        bytes_after(split(QWEN)),
        normalizers.Sequence([
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s{2,}"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]),
        [AddedToken("<tool>", normalized=True)],
    )
    yield "nfd", byte_level(bytes_after(split(QWEN)), normalizers.Sequence([normalizers.NFD(), normalizers.NFKD()]))
    yield "llama2", template(characters(LLAMA2, decoder=STRIPPED), "<s>")
    yield "phi3", template(characters(
        LLAMA2, decoder=STRIPPED,
        added=[AddedToken("<|end|>", rstrip=True, normalized=False, special=True), *ODD],
    ), "<s>", end=["</s>"])
    yield "gemma", template(characters(
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence(FALLBACK),
        added=[AddedToken("▁▁", normalized=False), AddedToken("\n\n", normalized=False)],
    ), "<s>")
    yield "mistral", template(characters(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), STRIPPED), "<s>")
    yield "metaspace", characters(
        None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True), STRIPPED)
    yield "unknown fused", characters(
        None, pre_tokenizers.Metaspace(prepend_scheme="never", split=True),
        decoders.Metaspace(prepend_scheme="never", split=True), fallback=False)


def main():
    out = []
    for name, t in kinds():
        made = json.loads(t.to_str())
        if name in ("gpt2", "llama2"):  # As older versions wrote them.
            made["model"]["merges"] = [" ".join(pair) for pair in made["model"]["merges"]]
            t = Tokenizer.from_str(json.dumps(made))
        cases = []
        for text in TEXTS:
            encoding = t.encode(text)
            ids = encoding.ids
            if name == "phi3":  # EOS behind a text is left out.
                assert ids[-1] == t.token_to_id("</s>")
                ids = ids[:-1]
            cases.append({"ids": ids, "text": t.decode(ids)})
        out.append({"name": name, "tokenizer": made, "cases": cases})
    path = pathlib.Path(__file__).parent / "fixtures/tokenizers.json"
    parts = ",\n".join(json.dumps(o, ensure_ascii=False, separators=(",", ":")) for o in out)
    path.write_text('{"texts":' + json.dumps(TEXTS) + ',"tokenizers":[\n' + parts + "\n]}\n")


def real(folder):
    t = Tokenizer.from_file(str(folder / "tokenizer.json"))
    root = pathlib.Path(__file__).parent.parent
    texts = [*TEXTS, *CORPUS[:5], (root / "real/running.txt").read_text(), pathlib.Path(__file__).read_text()]
    (folder / "ids.json").write_text(json.dumps([(text, t.encode(text).ids) for text in texts]))


if sys.argv[1:]:
    [real(pathlib.Path(folder)) for folder in sys.argv[1:]]
else:
    main()
