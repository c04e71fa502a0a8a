#!/usr/bin/env python3
"""The reference implementation as a decoder for conformance.run; its own Python runs it.

    conformance.run --decoder 'PEER_PYTHON conformance/peer_decoder.py {in} {out} {parents}'

It writes a folder of raw tensors with `tensors.json`. An exit code other than 0 is a refusal, and
the last line of stderr what the reference said.
"""

import importlib
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))
peer_server = importlib.import_module("peer_server")


def main(stream, out, *parents):
    """Decode a stream behind its parents."""
    resource.setrlimit(resource.RLIMIT_AS, (peer_server.MEMORY_LIMIT, peer_server.MEMORY_LIMIT))
    codec = peer_server.load_reference()
    with tempfile.TemporaryDirectory() as scratch:
        request = {"streams": [*parents, stream], "out": os.path.join(scratch, "tensors.npz")}
        try:
            names = peer_server.decode(codec, request)["names"]
        except BaseException as error:  # SystemExit as well
            message = " ".join(str(error).split())
            print(f"{type(error).__name__}: {message}", file=sys.stderr)
            return 3
        with np.load(request["out"]) as archive:
            write(Path(out), {name: archive[str(i)] for i, name in enumerate(names)})
    return 0


def write(folder, tensors):
    """Write the tensors as conformance/README.md describes."""
    folder.mkdir()
    entries = []
    for i, (name, values) in enumerate(tensors.items()):
        little = values.astype(values.dtype.newbyteorder("<"))
        (folder / f"{i}.bin").write_bytes(little.tobytes())
        entry = {"dtype": values.dtype.name, "shape": list(values.shape), "file": f"{i}.bin"}
        entries.append({"name": name, **entry})
    (folder / "tensors.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
