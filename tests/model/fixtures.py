"""Writes the decode fixtures: for each format a few random blocks, and what the published
`gguf` package makes of them.

    pip install gguf==0.19.0 && python3 fixtures.py

fixtures/NAME.blocks holds the blocks, fixtures/NAME.f32 their elements as little-endian f32.
The package knows no values of Q1_0 and Q2_0: those follow the definition in ggml. Scales are finite, and the first blocks have the awkward ones: largest, subnormal, zero, of either
sign. The same numbers come out each time.
"""

import pathlib
import random
import struct

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Largest, smallest normal, largest and smallest subnormal, zero and one, of either sign.
EDGES = [
    sign | bits
    for bits in (0x7BFF, 0x0400, 0x03FF, 0x0001, 0x0000, 0x3C00)
    for sign in (0x0000, 0x8000)
]

# Where the f16 scales of a block are.
SCALES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "MXFP4": [],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "Q1_0": [0],
    "Q2_0": [0],
}

# Sizes and meaning of what the package has a number for, but no code.
EXTRA = {
    "Q1_0": (128, 18),
    "Q2_0": (64, 18),
}

FLOATS = {
    "F32": ("<I", [0, 1 << 31, 1, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x007FFFFF]),
    "F16": ("<H", EDGES + [0x7C00, 0xFC00]),
    "BF16": ("<H", [0, 1 << 15, 1, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x007F]),
}


def finite(rng):
    """The bits of a finite f16."""
    while True:
        bits = rng.getrandbits(16)
        if bits & 0x7C00 != 0x7C00:
            return bits


def blocks(name, rng):
    elements, size = EXTRA.get(name) or GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    # Every exponent, with the most ordinary last.
    exponents = [*range(128, 256), *range(128)] if name == "MXFP4" else None
    count = len(exponents) if exponents else 16 if elements == 256 else 36
    out = bytearray()
    for i in range(count):
        block = bytearray(rng.randbytes(size))
        for n, at in enumerate(SCALES[name]):
            # The second scale walks the other way, so that the edges meet in pairs.
            edge = EDGES[i % len(EDGES)] if n == 0 else EDGES[-1 - (i * 5) % len(EDGES)]
            struct.pack_into("<H", block, at, edge if i < len(EDGES) else finite(rng))
        if i == 1 or i == 14:
            # All codes at one end and all at the other, under scales that stay as they are.
            keep = [(at, block[at : at + 2]) for at in SCALES[name]]
            block[:] = bytes([0xFF if i == 1 else 0]) * size
            for at, two in keep:
                block[at : at + 2] = two
        if exponents:
            block[0] = exponents[i]
        if name == "MXFP4" and i == count - 1:
            # No code without effect: a zero with a sign is the same zero.
            block[1:] = bytes(rng.choice([1, 2, 3, 4, 5, 6, 7]) * 17 ^ rng.choice([0, 8, 128]) for _ in block[1:])
        out += block
    return bytes(out)


def extra(name, data):
    """What the blocks of a format in `EXTRA` hold, from its definition alone."""
    size = EXTRA[name][1]
    data = np.frombuffer(data, np.uint8).reshape(-1, size)
    d = data[:, :2].copy().view("<f2").astype(np.float32)
    if name == "Q1_0":
        bits = np.unpackbits(data[:, 2:], axis=1, bitorder="little")
        return np.where(bits == 1, d, -d).ravel()
    if name == "Q2_0":
        codes = data[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
        return (d * (codes.reshape(len(data), -1).astype(np.float32) - 1)).ravel()
    raise KeyError(name)


def floats(name, rng):
    pack, edges = FLOATS[name]
    out = b"".join(struct.pack(pack, bits) for bits in edges)
    while len(out) < 256 * struct.calcsize(pack):
        bits = rng.randbytes(struct.calcsize(pack))
        exponent = int.from_bytes(bits, "little") >> (10 if name == "F16" else 23 if name == "F32" else 7)
        if exponent & (0x1F if name == "F16" else 0xFF) != (0x1F if name == "F16" else 0xFF):
            out += bits
    return out


def main():
    folder = pathlib.Path(__file__).parent / "fixtures"
    folder.mkdir(exist_ok=True)
    for name in [*FLOATS, *SCALES]:
        rng = random.Random(name)
        data = floats(name, rng) if name in FLOATS else blocks(name, rng)
        if name in EXTRA:
            values = extra(name, data)
        elif name in ("F32", "F16"):
            # The package passes these through as numpy types.
            values = np.frombuffer(data, "<f4" if name == "F32" else "<f2").astype("<f4")
        else:
            values = dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType[name]).astype("<f4", copy=False)
        assert not np.isnan(values).any(), name
        (folder / f"{name}.blocks").write_bytes(data)
        (folder / f"{name}.f32").write_bytes(values.tobytes())


if __name__ == "__main__":
    main()
