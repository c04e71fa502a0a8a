"""What the tests with damaged streams share: seeds, mutants, and what comes of decoding them."""

from __future__ import annotations

import io
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec import bitstream as nnr
from nnr_codec.encoding.unit_encoder import CodedLevels, encode_data_unit
from nnr_codec.errors import BitstreamError
from nnr_codec.factorization.forms import FORMS, FactoredWeight

ROOT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("NNR_VECTORS") or ROOT / "tests" / "golden" / "peer_vectors")
LIMITS = DecodeLimits(max_elements_per_tensor=2**20, max_elements=2**21)
WALL_SECONDS = 5.0  # of one decoding, on a busy machine: a thousand times the usual
LARGEST_SEED = 10_000  # bytes

Arrays = dict[str, np.ndarray]
Outcome = tuple[Any, ...]


# ---- Seeds --------------------------------------------------------------------------------------


def vector(name: str) -> bytes:
    path = VECTORS / f"{name}.nnc"
    if not path.exists():
        pytest.skip("the peer's vectors are not here")
    return path.read_bytes()


@cache
def seeds() -> list[bytes]:
    """Streams that decode without parents, or do not: both ways lead into the decoder."""
    vectors = [path.read_bytes() for path in sorted(VECTORS.glob("*.nnc"))]
    small = [data for data in vectors if len(data) <= LARGEST_SEED]
    return [*small, *own_streams(), *mapped_streams()]


def ramp(*shape: int, modulus: int = 11) -> np.ndarray:
    """Small numbers of both signs, the same everywhere."""
    numbers = (np.arange(np.prod(shape), dtype=np.int64) * 7919 + 13) % modulus - modulus // 2
    return numbers.astype(np.int32).reshape(shape)


def exact_tensors() -> Arrays:
    """A tensor for each meaning that the model map can give to integers."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, 5).astype(np.float32)
    return {
        "raw": np.array([1.1, np.nan, -0.0], np.float32),
        "grid": (ramp(20, 9) * 0.0123).astype(np.float32),
        "table": table[ramp(40, 24, modulus=5) + 2],
        "bits": rng.normal(0, 1, (9, 9)).astype(np.float16),
        "halves": np.array([2**40, -1, 7]),
    }


def factored_weights() -> dict[str, FactoredWeight]:
    """A weight of each form, two of which share a factor."""
    rng = np.random.default_rng(0)
    found = {}
    for name, kind in FORMS.items():
        ranks = [min(2, most) for most in kind.max_ranks((5, 4, 3, 2))]
        shapes = kind.factor_shapes((5, 4, 3, 2), ranks)
        found[name] = kind((5, 4, 3, 2), tuple(rng.normal(0, 1, s).astype("f4") for s in shapes))
    left, right = found["joint_right"].factors
    found["member"] = type(found["joint_right"])((5, 4, 3, 2), (left + 1, right))
    return found


@cache
def mapped_streams() -> list[bytes]:
    """Streams whose model map has something to say of nearly every tensor."""
    options = nnr_codec.EncodeOptions(lossless=True)
    weights = factored_weights()
    dense = {name: weight.to_dense() for name, weight in weights.items()}
    results = [
        nnr_codec.encode(exact_tensors(), options=options),
        nnr_codec.encode(dense, factorizations=weights),
        nnr_codec.encode(dense, factorizations=weights, options=options),
    ]
    return [result.data or b"" for result in results]


def quietly_encoded(*arguments: Any, **options: Any) -> bytes:
    """Encode without the warnings that coarse steps give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnr_codec.NnrWarning)
        return nnr_codec.encode(*arguments, **options).data or b""


@cache
def own_streams() -> list[bytes]:
    """Tools that the peer does not write: raw floats, integers, layer parameter sets, blocks."""
    rng = np.random.default_rng(0)
    # On no grid and in no table that says them exactly: they are to be quantized.
    noise = rng.normal(0, 0.01, (40, 24))
    weights = {"w": ((ramp(40, 24) + noise) * np.pi).astype(np.float32)}
    weights["b"] = weights["w"][0] / 3
    # Of any size: nothing is smaller than raw floats.
    raw = {
        n: np.ldexp(rng.random(v.shape), rng.integers(-120, 120, v.shape)).astype(np.float32)
        for n, v in weights.items()
    }
    integers = {f"i{t}": ramp(9, 5).astype(t) for t in ("int8", "int16", "int32", "int64")}
    narrow = {"h": ramp(6, 6).astype(np.float16), "d": ramp(6, 6).astype(np.float64)}
    choices: list[tuple[Arrays, dict[str, Any]]] = [
        (raw, {"lossless": True}),
        (integers, {}),
        (narrow, {}),
        (weights, {"scan_order": 1, "profile": 1}),
        (weights, {"scan_order": 1, "dq": False, "codebook": True, "qp": -8}),
        (weights, {"row_skipping": True, "qp": 12}),
    ]
    encoded = [
        quietly_encoded(arrays, options=nnr_codec.EncodeOptions(**options))
        for arrays, options in choices
    ]
    assert all(encoded)
    blocks = [block_stream(profile, scan_order) for profile in (0, 1) for scan_order in (0, 1)]
    return [bytes(data) for data in encoded if data] + blocks


def head(profile: int = 0, **mps: Any) -> tuple[bytes, nnr.Context]:
    """A stream's first units, and the context behind them."""
    record = nnr.ModelParameterSet(**mps)
    start = nnr.write_record(nnr.StartUnit(profile)) + nnr.write_record(record, profile)
    return start, nnr.Context(profile, record)


def block_stream(profile: int, scan_order: int) -> bytes:
    """A decomposed block with everything in it, and a layer parameter set before it."""
    start, context = head(profile)
    lps = nnr.LayerParameterSet(lps_qp_density=3, lps_quantization_parameter=-20)
    context = nnr.Context(profile, context.mps, lps)
    names = ["x_G", "x_H", "x.ls", "x.beta", "x.gamma", "x.mean", "x.var", "x.bias"]
    record = nnr.DataUnit(
        nnr.PayloadType.BLOCK,
        names,
        dq_flag=1,
        compressed_parameter_types=15,
        decomposition_rank=3,
        g_number_of_rows=20,
        tensor_dimensions=[20, 5, 3],
        scan_order=scan_order,
    )
    sizes = {"G": 60, "H": 45}
    coded = {r: CodedLevels(ramp(sizes.get(r, 20))) for r in record.coding_roles()}
    unit = encode_data_unit(record, coded, context)
    private = nnr.write_unit(33, b"anything")
    return start + private + nnr.write_record(lps) + nnr.write_record(nnr.Topology()) + unit


# ---- Mutants ------------------------------------------------------------------------------------


def units_of(stream: bytes) -> list[bytes]:
    return [bytes(unit.data) for unit in nnr.read_units(stream)]


class Mutator:
    """Damages streams in ways that reach different depths of the decoder."""

    def __init__(self, seed: int, pool: Sequence[bytes]) -> None:
        self.random = random.Random(seed)
        self.pool = [units_of(stream) for stream in pool]
        self._kinds = [
            self.bytes_of_a_unit,
            self.bytes_of_a_unit,
            self.length_of_a_unit,
            self.bits,
            self.order,
            self.splice,
            self.size_field,
            self.truncate,
        ]

    def mutant(self) -> bytes:
        units = list(self.random.choice(self.pool))
        return self.random.choice(self._kinds)(units)

    def _any_unit(self, units: list[bytes]) -> int:
        # The data units are where the work is; the others are short and hit soon enough.
        last = len(units) - 1
        return (
            self.random.randint(min(3, last), last)
            if self.random.random() < 0.8
            else (self.random.randint(0, last))
        )

    def _place(self, unit: bytes) -> int:
        """A byte of the unit behind its size, half of the time in the header."""
        end = min(len(unit), 48) if self.random.random() < 0.5 else len(unit)
        return self.random.randrange(2, end)

    def bytes_of_a_unit(self, units: list[bytes]) -> bytes:
        """One to three bytes become something else; the framing holds."""
        index = self._any_unit(units)
        unit = bytearray(units[index])
        for _ in range(self.random.choice((1, 1, 2, 3))):
            extreme = self.random.choice((0, 0xFF, 0x80, 0x7F, 1))
            value = extreme if self.random.random() < 0.3 else self.random.randrange(256)
            unit[self._place(unit)] = value
        units[index] = bytes(unit)
        return b"".join(units)

    def length_of_a_unit(self, units: list[bytes]) -> bytes:
        """Bytes are inserted or deleted, and the unit's size says so."""
        index = self._any_unit(units)
        unit = units[index]
        if len(unit) >= 2**15:
            return b"".join(units)
        place, count = self._place(unit), self.random.randint(1, 5)
        if self.random.random() < 0.5:
            body = unit[2:place] + self.random.randbytes(count) + unit[place:]
        else:
            body = unit[2:place] + unit[place + count :]
        units[index] = (len(body) + 2).to_bytes(2, "big") + body
        return b"".join(units)

    def bits(self, units: list[bytes]) -> bytes:
        """A few bits anywhere flip."""
        data = bytearray(b"".join(units))
        for _ in range(self.random.randint(1, 6)):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def order(self, units: list[bytes]) -> bytes:
        """Units are swapped, repeated or left out."""
        first, second = self.random.randrange(len(units)), self.random.randrange(len(units))
        kind = self.random.randrange(3)
        if kind == 0:
            units[first], units[second] = units[second], units[first]
        elif kind == 1:
            units.insert(second, units[first])
        else:
            del units[first]
        return b"".join(units)

    def splice(self, units: list[bytes]) -> bytes:
        """A unit of another stream takes the place of one, or comes in between."""
        other = self.random.choice(self.random.choice(self.pool))
        index = self.random.randrange(len(units))
        units[index : index + self.random.randint(0, 1)] = [other]
        return b"".join(units)

    def size_field(self, units: list[bytes]) -> bytes:
        """A unit lies about its size."""
        index = self._any_unit(units)
        size = self.random.choice(
            (
                0,
                1,
                2,
                3,
                4,
                5,
                0x7FFF,
                0x8000,
                0xFFFF,
                len(units[index]) + 1,
                len(units[index]) - 1,
                self.random.randrange(2**16),
            )
        )
        units[index] = size.to_bytes(2, "big") + units[index][2:]
        return b"".join(units)

    def truncate(self, units: list[bytes]) -> bytes:
        """The end is missing, or random bytes follow."""
        data = b"".join(units)
        if self.random.random() < 0.2:
            return data + self.random.randbytes(self.random.randint(1, 40))
        return data[: self.random.randrange(len(data))]


# ---- Outcomes -----------------------------------------------------------------------------------


def tensors_of(decoded: Arrays) -> Outcome:
    return tuple((n, a.dtype.str, a.shape, a.tobytes()) for n, a in decoded.items())


def outcome(
    stream: Any, parents: Sequence[bytes] = (), executor: Executor | None = None, **more: Any
) -> Outcome:
    """The tensors, or the type of the error. Anything but a BitstreamError goes through."""
    limits = more.pop("limits", LIMITS)
    try:
        decoded = nnr_codec.decode(
            stream, parents=parents, limits=limits, executor=executor, **more
        )
    except BitstreamError as error:
        return (type(error),)
    return tensors_of(decoded)


def is_error(found: Outcome) -> bool:
    return len(found) == 1 and isinstance(found[0], type)


def timed(stream: bytes, decode: Callable[[], Outcome]) -> Outcome:
    """Run a decoding under the wall limit; whatever is wrong with it is told with the stream."""
    start = time.perf_counter()
    try:
        found = decode()
    except Exception as error:
        pytest.fail(f"{error!r} from the stream {stream.hex()}")
    seconds = time.perf_counter() - start
    assert seconds < WALL_SECONDS, f"{seconds} s for the stream {stream.hex()}"
    return found


class ShortReads(io.RawIOBase):
    """A pipe whose reads give 1, 2, 3, 1, … bytes, however many are wanted."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._source = io.BytesIO(data)
        self._calls = 0

    def read(self, size: int = -1) -> bytes:
        self._calls += 1
        return self._source.read(min(size, 1 + self._calls % 3))
