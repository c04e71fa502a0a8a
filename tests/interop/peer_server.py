"""A server around the reference implementation, NNCodec 2.1.3 (PyPI: ``nncodec``), as a black box.

It is run by the Python of an environment of its own, which needs numpy and nncodec alone::

    python3 -m venv PEER && PEER/bin/pip install numpy "setuptools<81"
    PEER/bin/pip install --no-deps nncodec==2.1.3

One request per line of stdin, one answer per line of stdout, both JSON. Arrays and bitstreams
travel as files: an ``.npz`` has keys ``0``, ``1``, ... and the names stand in the message, because
not every name of a tensor is one of a zip member. Every request is complete in itself: the state
that a series of updates needs lives for one request.

* ``{"op": "decode", "streams": [PATH, ...], "out": PATH}``: decodes the streams, a series if
  there are several or ``series`` is true, and answers with the tensors of the last.
  ``integers`` answers with the integers of the last stream that the series' state has got, even if
  the reference failed afterwards, in place of the tensors.
* ``{"op": "encode", "models": [{"path": PATH, "names": [...]}, ...], "out": [PATH, ...], "options":
  {...}}``: encodes the models, a series likewise. ``history`` adds the contexts of that name.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

MEMORY_LIMIT = 6 << 30
"""Bytes: the reference allocates whatever a header asks for."""

CONFORMANCE = Path(__file__).parents[2] / "conformance"


def load_reference():
    """Import its codec, with empty modules for the framework layers, which that does not use."""
    sys.path.append(str(CONFORMANCE))
    return importlib.import_module("nncodec_peer").load_peer()


def new_base():
    """What it keeps of the earlier streams: dictionaries by tensor, which it fills itself."""
    keys = ("put_node_depth", "parameters", "device_id", "parent_node_id", "parameter_id")
    return {key: {} for key in keys}


class History:
    """Its ``hdsp_tool``: where a tensor's integer was non-zero in an earlier stream."""

    hdsp_enabled = True  # its encoder asks

    def __init__(self, base):
        modes = importlib.import_module("nncodec.extensions.deepCABAC").HdspMode
        self._on, self._off = modes.TensorOn, modes.TensorOff
        self._base = base
        self._seen = {}

    def get_num_modes(self, _names):
        """Answer how many modes its encoder is to try."""
        return 1

    def add_data_to_hist(self, *_):
        """Do nothing: its encoder calls this, its decoder does not; see `end_of_stream`."""

    def get_opts(self, name, purpose, *_):
        """Answer with the mode and int8 flags, none for a tensor that has no past.

        Its encoder would read such flags nevertheless: for it, history is off there.
        """
        on = name in self._seen or purpose == "d"
        return self._on if on else self._off, self._seen.get(name, np.zeros(0, np.int8))

    def end_of_stream(self):
        """Add the integers of the stream that was just coded."""
        for name, integers in self._base["parameters"].items():
            nonzero = (integers != 0).astype(np.int8)
            self._seen[name] = nonzero | self._seen.get(name, 0)


def decode(codec, request):
    """Decode the streams, and answer with the names of the last one's tensors."""
    series = request.get("series") or len(request["streams"]) > 1
    options = {}
    if series:
        base = new_base()
        options = {
            "approx_param_base": base,
            "update_base_param": True,
            "hdsp_tool": History(base),
        }
    result = {}
    for path in request["streams"]:
        with open(path, "rb") as file:
            stream = bytearray(file.read())
        try:
            result = codec.decompress(stream, **options)
        except Exception:
            if not request.get("integers"):
                raise
        if series:
            options["hdsp_tool"].end_of_stream()
    tensors = result[0] if isinstance(result, tuple) else result
    if request.get("integers"):
        tensors = base["parameters"]
    np.savez(request["out"], **{str(i): v for i, v in enumerate(tensors.values())})
    return {"names": list(tensors)}


def encode(codec, request):
    """Encode; each model to its own stream."""
    options = dict(request["options"])
    if len(request["models"]) > 1:
        base = new_base()
        options.update(approx_param_base=base, update_base_param=True, compress_differences=True)
        if request.get("history"):
            options["hdsp_tool"] = History(base)
    for model, out in zip(request["models"], request["out"], strict=True):
        with np.load(model["path"]) as archive:
            tensors = {name: archive[str(i)] for i, name in enumerate(model["names"])}
        stream = codec.compress(
            tensors, bitstream_path=os.devnull, return_bitstream=True, **options
        )
        with open(out, "wb") as file:
            file.write(stream)
        if options.get("hdsp_tool"):
            options["hdsp_tool"].end_of_stream()
    return {}


def main():
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reference prints, from C++ too
    os.dup2(1, 2)
    codec = load_reference()
    operations = {"decode": decode, "encode": encode}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request["op"]](codec, request)
        except BaseException as error:  # whatever it raises is its answer: SystemExit as well
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
