"""The reference implementation as an object: `Peer` keeps one process of it running."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]

PYTHON_VARIABLE = "NNR_PEER_PYTHON"
_SERVER = Path(__file__).with_name("peer_server.py")
_START_SECONDS = 60.0


class PeerFailure(Exception):
    """The reference did not do what it was asked for.

    Attributes:
        kind: "error" (it raised), "crash" (its process ended) or "hang" (it took too long).
        message: what it said, or how it ended.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Peer:
    """One process of the reference, started anew after a crash or hang.

    Args:
        python: the Python of its environment.
        seconds: time for one request.
    """

    def __init__(self, python: str, seconds: float = 60.0) -> None:
        self._python = python
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="nnr-peer-")
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its files."""
        self._stop()
        self._folder.cleanup()

    def decode(self, *streams: bytes) -> Tensors:
        """Decode streams, of one series if there are several; return the last one's tensors.

        Raises:
            PeerFailure: it failed.
        """
        return self._decode(streams, {})

    def integers(self, *streams: bytes) -> Tensors:
        """Return the integers that it found in the last of `streams`, after the doubling.

        It hands them out in the state of a series, and does so before it fails on the product of a
        decomposed layer. Only units with node ids, and of the first stream that fails those before
        the unit at fault, have any.
        """
        return self._decode(streams, {"series": True, "integers": True})

    def signal(self, number: int) -> None:
        """Send the running process a signal, to test what follows."""
        if self._process is not None:
            self._process.send_signal(number)

    def _decode(self, streams: Sequence[bytes], choices: dict[str, Any]) -> Tensors:
        paths = [self._path(f"in{i}.nnc") for i in range(len(streams))]
        for path, stream in zip(paths, streams, strict=True):
            path.write_bytes(stream)
        out = self._path("out.npz")
        request = {"op": "decode", "streams": _texts(paths), "out": str(out), **choices}
        names = self._ask(request)["names"]
        with np.load(out, allow_pickle=False) as archive:
            return {name: archive[str(i)] for i, name in enumerate(names)}

    def encode(self, model: Mapping[str, npt.NDArray[Any]], **options: Any) -> bytes:
        """Encode a model with keyword arguments of the reference's ``compress``."""
        return self.encode_series([model], **options)[0]

    def encode_series(
        self,
        models: Sequence[Mapping[str, npt.NDArray[Any]]],
        history: bool = False,
        **options: Any,
    ) -> list[bytes]:
        """Encode a model and its updates; several are coded as differences with parents.

        Raises:
            PeerFailure: it failed.
        """
        sources, outs = [], []
        for i, model in enumerate(models):
            path = self._path(f"model{i}.npz")
            np.savez(path, **{str(j): values for j, values in enumerate(model.values())})
            sources.append({"path": str(path), "names": list(model)})
            outs.append(self._path(f"out{i}.nnc"))
        request = {"op": "encode", "models": sources, "out": _texts(outs), "options": options}
        self._ask({**request, "history": history})
        return [path.read_bytes() for path in outs]

    def _path(self, name: str) -> Path:
        return Path(self._folder.name, name)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        seconds = self._seconds if self._process else self._seconds + _START_SECONDS
        process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has crashed: its end of stdout tells
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        answer = json.loads(self._line(process, seconds))
        if "error" in answer:
            raise PeerFailure("error", f"{answer['error']}: {answer['message']}")
        return answer

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """Read an answer, or end the process and say why there is none."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else b""
        if line.endswith(b"\n"):
            return line
        if ready:
            process.wait(_START_SECONDS)  # for its own exit status
        self._stop()
        if not ready:
            raise PeerFailure("hang", f"no answer in {seconds:g} s")
        raise PeerFailure("crash", f"its process ended with status {process.returncode}")

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # its environment must not see this project's
        self._process = subprocess.Popen(
            [self._python, str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=self._folder.name,
        )
        self.starts += 1
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # stdin may hold a request still
                    pipe.close()


def _texts(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]
