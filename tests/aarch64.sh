#!/usr/bin/env bash
# The AArch64 build, run under an emulator on x86-64: bash tests/aarch64.sh
#
# Installs from Debian a compiler with a library for arm64, a linker, and qemu's user-mode emulator
# (apt, so it needs root; the architecture arm64 is added to dpkg). Then, for aarch64,
#
#   - sees that library and binary compile without warnings;
#   - runs the CPU backend's unit tests on a processor that has all: NEON, dotprod and i8mm against
#     plain Rust, to the bit, in every format and shape; spans, attention, floats; and text of the
#     embedded model, which must be that of x86-64;
#   - sees on three processors that the instruction sets found are those that they have, and that
#     the text is the same.
#
# One test is left to machines: attention cut anywhere, which takes minutes here. A smaller one of
# the same kind is run. Ends with 77 where it cannot run, and says why.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

step() { printf -- '-- %s\n' "$*"; }
cannot() { echo "NOT RUN: $*"; exit 77; }

[ "$(uname -sm)" = "Linux x86_64" ] || cannot "the emulation is set up for Linux on x86-64 only"
rustc=/usr/bin/rustc
target=aarch64-unknown-linux-gnu
packages="qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross rustc-web"
library="libstd-rust-web-dev:arm64"

step "tools"
# shellcheck disable=SC2086
if ! dpkg-query -W $packages "$library" >/dev/null 2>&1; then
  command -v apt-get >/dev/null || cannot "there is no apt-get to install $packages $library with"
  [ "$(id -u)" = 0 ] || cannot "not root, who alone can install $packages $library"
  dpkg --add-architecture arm64
  apt-get update -qq
  apt-cache show rustc-web >/dev/null 2>&1 || cannot "this system's packages have no rustc-web"
  apt-get install -y -qq --no-install-recommends $packages >/dev/null
  # Apart: it must be of the compiler's version.
  apt-get install -y -qq --no-install-recommends "$library" >/dev/null
fi
"$rustc" --version
qemu-aarch64-static --version | head -1
wants="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)"
has="$("$rustc" --version | cut -d' ' -f2)"
[ "$(printf '%s\n' "$wants" "$has" | sort -V | head -1)" = "$wants" ] ||
  cannot "rustc $has is older than $wants"

# cargo with that compiler. Linked statically: dynamic programs hang in the emulator as they start
# threads. Dependencies are not optimized, as little of them is used here.
arm() {
  local command="$1"
  shift
  RUSTC="$rustc" \
    CARGO_BUILD_TARGET="$target" \
    CARGO_TARGET_DIR=target/aarch64 \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64-static \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static -D warnings" \
    CARGO_PROFILE_DEV_DEBUG=0 \
    CARGO_PROFILE_DEV_OPT_LEVEL=2 \
    CARGO_INCREMENTAL=0 \
    cargo "$command" --locked --config 'profile.dev.package."*".opt-level=0' "$@"
}

step "library and binary"
arm check --lib --bins

step "unit tests of the CPU backend"
QEMU_CPU=max arm test --lib cpu:: -- --skip ::rows_do_not_know_of_one_another

step "what processors have"
for pair in cortex-a57=neon neoverse-n1=dotprod max=i8mm; do
  said="$(QEMU_CPU="${pair%=*}" arm test --quiet --lib cpu::tests:: -- --nocapture)"
  best="$(sed -n 's/ wrote the same text$//p' <<<"$said" | tail -1)"
  echo "${pair%=*}: ${best:-nothing}"
  [ "$best" = "${pair#*=}" ]
done

step "all passed"
