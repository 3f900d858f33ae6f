"""Compiles the kernels to cubins and writes the manifest. Called by build.sh."""

import ctypes, glob, hashlib, os, re, subprocess, sys

ARCHS = ["80", "86", "89", "90a"]
FILES = ["gemv.cu", "gemm.cu", "experts.cu", "rows.cu", "attend.cu", "attend_one.cu", "attend_many.cu", "sample.cu"]
# What needs bulk copies.
HOPPER = ["chain.cu", "several.cu", "picked.cu"]
OPTIONS = ["--std=c++17"]


class Nvrtc:
    """The compiler as a library: it reads text and gives a cubin, without files or a host compiler."""

    def __init__(self, folder):
        for name in ("libnvrtc-builtins.so.12.9", "libnvrtc.so.12"):
            self.lib = ctypes.CDLL(os.path.join(folder, name), mode=ctypes.RTLD_GLOBAL)

    def check(self, code):
        if code != 0:
            self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(self.lib.nvrtcGetErrorString(code).decode())

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    def text(self, program, size, get):
        n = ctypes.c_size_t()
        self.check(getattr(self.lib, size)(program, ctypes.byref(n)))
        buffer = ctypes.create_string_buffer(n.value)
        self.check(getattr(self.lib, get)(program, buffer))
        return buffer.raw

    def cubin(self, name, source, headers, options):
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*[n.encode() for n, _ in headers])
        texts = (ctypes.c_char_p * len(headers))(*[t.encode() for _, t in headers])
        self.check(self.lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(),
                                               name.encode(), len(headers), texts, names))
        flags = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = self.lib.nvrtcCompileProgram(program, len(options), flags)
        log = self.text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
        log = log.rstrip(b"\0").decode().strip()
        if log:
            print(f"{name}: {log}", file=sys.stderr)
        self.check(code)
        cubin = self.text(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin


HERE = os.path.dirname(os.path.abspath(__file__))


def headers():
    paths = sorted(glob.glob(os.path.join(HERE, "*.cuh")))
    return [(os.path.basename(p), open(p, encoding="utf-8").read()) for p in paths]


def source_hash(source, texts):
    """Of the file, of all headers and of the options: what a cubin follows from."""
    parts = [source] + [name + text for name, text in texts] + OPTIONS
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def resources(cuobjdump, path):
    """Registers, spilled bytes, stack and static shared memory of each kernel."""
    out = subprocess.run([cuobjdump, "-res-usage", path], capture_output=True, text=True, check=True)
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", out.stdout)
    if not found:
        raise RuntimeError(f"{path}: no kernels found\n{out.stdout}")
    return sorted(found)


# What a name says of the instance: the template's arguments.
TILES = {"few": 8, "some": 32, "many": 128, "halves": 64}
ARGUMENTS = {"f32": "KIND=F32", "f16": "KIND=F16", "bf16": "KIND=BF16"}


def arguments(kernel):
    name, _, tile = kernel.rpartition("_")
    rows = f",ROWS={TILES[tile]}" if tile in TILES else ""
    kernel = name if rows else kernel
    planes = re.fullmatch(r"(?:gem[vm]|picked|experts)_(\d)_(\d)", kernel)
    if planes:
        return f"LO={planes[1]},HI={planes[2]}{rows}"
    return ARGUMENTS.get(kernel.split("_")[-1], "-") + rows


def main(compiler, cuobjdump, out, archs):
    nvrtc, texts = Nvrtc(compiler), headers()
    lines = ["# arch file kernel arguments source-sha256 compiler registers stack shared cubin-bytes"]
    for arch in archs:
        folder = os.path.join(out, f"sm_{arch}")
        os.makedirs(folder, exist_ok=True)
        for file in FILES + (HOPPER if arch == "90a" else []):
            source = open(os.path.join(HERE, file), encoding="utf-8").read()
            cubin = nvrtc.cubin(file, source, texts, [f"--gpu-architecture=sm_{arch}"] + OPTIONS)
            path = os.path.join(folder, file.replace(".cu", ".cubin"))
            with open(path, "wb") as f:
                f.write(cubin)
            for kernel, registers, stack, shared, _ in resources(cuobjdump, path):
                lines.append(f"sm_{arch} {file} {kernel} {arguments(kernel)} "
                             f"{source_hash(source, texts)[:16]} nvrtc-{nvrtc.version()} "
                             f"{registers} {stack} {shared} {len(cubin)}")
    with open(os.path.join(out, "MANIFEST"), "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:] or ARCHS)
