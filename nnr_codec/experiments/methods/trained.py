"""This package's codec, after training by a function of the user's: see `..training_run`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptions
from ...user.code import load_function, naming_failures
from ..checked_table import CheckedTable
from ..fingerprints import codec_fingerprint, file_digest
from .base import Arrays, Decoded, Encoded
from .nnr import breakdown, decoded

if TYPE_CHECKING:
    from ..training_run import TrainingRun

_TRAINING = Path(__file__).parents[2] / "training"


@dataclass(frozen=True)
class TrainedCodec:
    """A training at one operating point.

    Attributes:
        source: ``FILE.py:FUNCTION``, with an absolute path.
        seed: of the training.
        values: the function's arguments by keyword, as JSON.
    """

    source: str
    seed: int
    values: str

    @classmethod
    def from_options(cls, values: Mapping[str, Any], folder: Path) -> TrainedCodec:
        """Return the codec with a plan's options; InvalidOptions if one is wrong.

        They are ``train``, ``seed`` (0 by default), and whatever the function takes.
        """
        known = {name: values[name] for name in ("train", "seed") if name in values}
        table = CheckedTable(known, "trained")
        source = table.value("train", str)
        file, colon, function = source.rpartition(":")
        if not colon:
            raise InvalidOptions("train", f"{source!r} is not of the form FILE.py:FUNCTION")
        seed = table.value("seed", int, 0)
        if seed < 0:
            raise InvalidOptions("seed", f"{seed} is less than 0")
        path = folder / file
        if not path.is_file():
            raise InvalidOptions("train", f"there is no file {str(path)!r}")
        rest = {name: value for name, value in values.items() if name not in known}
        try:
            text = json.dumps(rest, sort_keys=True)
        except TypeError as error:  # dates and times, of which TOML has some
            raise InvalidOptions("options", str(error)) from None
        return cls(f"{path.resolve()}:{function}", seed, text)

    def encode(self, tensors: Arrays) -> Encoded:
        """Raise InvalidOptions: tensors alone cannot be trained."""
        raise InvalidOptions("codec", "'trained' needs a network, not tensors alone")

    def encode_trained(self, run: TrainingRun) -> Encoded:
        """Train, and encode.

        Raises InvalidOptions if the function is not there, fails, or returns no bitstream.
        """
        train = load_function(self.source, "train")
        start = time.perf_counter()
        with naming_failures(self.source, "train"):
            stream = train(replace(run, seed=self.seed), **json.loads(self.values))
        if not isinstance(stream, bytes):
            reason = f"{self.source}: returns a value of type {type(stream).__name__}, not bytes"
            raise InvalidOptions("train", reason)
        return Encoded(stream, time.perf_counter() - start, breakdown(stream, None))

    def decode(self, data: bytes) -> Decoded:
        """Decode with one thread; raises what ``nnr_codec.decode`` raises."""
        return decoded(data, None)

    def identity(self) -> dict[str, Any]:
        """Return the options, the digests of the file and those beside it, and the fingerprint of
        the codec's files."""
        return {**self.training_identity(), "seed": self.seed, "version": codec_fingerprint()}

    def training_identity(self) -> dict[str, Any]:
        """Return what decides how it is trained, whatever the seed and the rest of the codec."""
        file, _, function = self.source.rpartition(":")
        folders = {"": Path(file).parent, "nnr_codec.training: ": _TRAINING}
        return {
            "codec": "trained",
            "function": function,
            "files": {
                f"{name}{path.name}": file_digest(path)
                for name, folder in folders.items()
                for path in sorted(folder.glob("*.py"))
            },
            "values": json.loads(self.values),
        }
