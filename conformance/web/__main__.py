"""Make the page that decodes in the browser, in a folder.

    python -m conformance.web FOLDER
    python -m http.server -d FOLDER

It holds the page, the device decoder in WebAssembly, and bitstreams of the digits network: in
quality layers; in one; and, where torch is installed, decomposed and trained. Needs clang with
wasm-ld, and a C library for WebAssembly (Debian: clang, lld, wasi-libc).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nnr_codec
from conformance.on_factors import (
    DEVICE,
    NETWORK,
    PROGRAM,
    compile_decoder,
    trained,
    write_images,
)
from nnr_codec import EncodeOptions

HERE = Path(__file__).parent
TARGET = "--target=wasm32-wasi"
IMAGES = "digits.bin"
RATIO = 8.0
LAYERED_QP = -30


def build_decoder(folder: Path) -> Path:
    """Compile the decoder and the network; raises CalledProcessError, or FileNotFoundError."""
    with tempfile.TemporaryDirectory() as name:
        objects = compile_decoder(Path(name), ["clang++", TARGET, "-Os"])
        program = folder / "nnrdec.wasm"
        includes = [f"-I{DEVICE}", f"-I{PROGRAM}"]
        sources = [HERE / "web_decoder.c", PROGRAM / "store.c", PROGRAM / "digits_network.c"]
        flags = ["-std=c11", "-O2", "-mexec-model=reactor", "-Wl,--strip-all"]
        command = ["clang", TARGET, *flags, *includes, *sources, *objects, "-lm", "-o", program]
        subprocess.run(command, check=True)
    return program


def streams(with_training: bool) -> Iterator[tuple[str, str, bytes]]:
    """Yield the name, title and bytes of each bitstream."""
    layered = EncodeOptions(qp=LAYERED_QP, quality_layers=3)
    yield "layers", "three quality layers", nnr_codec.encode(NETWORK, options=layered).data or b""
    yield "plain", "one stream", nnr_codec.encode(NETWORK).data or b""
    if with_training:
        yield "factors", f"decomposed to 1/{RATIO:g}, and trained", trained(RATIO)


def make(folder: Path, with_training: bool) -> None:
    """Write the page and all that it fetches."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((HERE / "page").iterdir()):
        shutil.copyfile(source, folder / source.name)
    decoder = build_decoder(folder)
    write_images(folder / IMAGES)
    listed = []
    for name, title, data in streams(with_training):
        (folder / f"{name}.nnr").write_bytes(data)
        listed.append({"file": f"{name}.nnr", "title": f"{title}, {len(data) / 1000:.1f} kB"})
    size = decoder.stat().st_size
    manifest = {"streams": listed, "images": IMAGES, "decoder_bytes": size}
    (folder / "streams.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    missing = [tool for tool in ("clang", "clang++", "wasm-ld") if shutil.which(tool) is None]
    if missing:
        print(f"conformance.web: there is no {', '.join(missing)}", file=sys.stderr)
        return 1
    make(folder, importlib.util.find_spec("torch") is not None)
    print(f"python -m http.server -d {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
