"""Damaged bitstreams: nothing but BitstreamError comes out, within time and memory limits.

Every run makes the same mutants (seeded). Seeds are the peer's vectors where they are present, and
streams of our own that use what the vectors lack. A mutant that fails is printed in hex.
"""

from __future__ import annotations

import importlib.util
import io
import os
import random
import resource
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec import bitstream as nnr
from nnr_codec.bitstream.bits import BitWriter
from nnr_codec.errors import (
    BitstreamError,
    InvalidBitstream,
    LimitExceeded,
    MissingParent,
    NnrError,
    TruncatedBitstream,
    UnsupportedFeature,
)
from nnr_codec.factorization.forms import FORMS, FactoredWeight
from nnr_codec.unit_encoder import CodedLevels, encode_data_unit

ROOT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("NNR_VECTORS") or ROOT / "tests" / "golden" / "peer_vectors")
LIMITS = DecodeLimits(max_elements_per_tensor=2**20, max_elements=2**21)
WALL_SECONDS = 5.0  # of one decoding, on a busy machine: a thousand times the usual
LARGEST_SEED = 10_000  # bytes

pytestmark = pytest.mark.filterwarnings("error")  # damage must not show as warnings of numpy

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


@cache
def own_streams() -> list[bytes]:
    """Tools that the peer does not write: raw floats, integers, layer parameter sets, blocks."""
    # On no step that says them exactly: they are to be quantized.
    weights = {"w": (ramp(40, 24) * np.pi).astype(np.float32)}
    weights["b"] = weights["w"][0] / 3
    rng = np.random.default_rng(0)  # of any size: nothing is smaller than raw floats
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
        nnr_codec.encode(arrays, options=nnr_codec.EncodeOptions(**options)).data
        for arrays, options in choices
    ]
    assert all(encoded)
    blocks = [block_stream(profile, scan_order) for profile in (0, 1) for scan_order in (0, 1)]
    return [bytes(data) for data in encoded if data] + blocks


def head(profile: int = 0, **mps: Any) -> tuple[bytes, nnr.Context]:
    """A stream's first units, and the context behind them."""
    record = nnr.ModelParameterSet(**mps)
    return nnr.write_start(profile) + nnr.write_mps(record, profile), nnr.Context(profile, record)


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
    unit = encode_data_unit(record, coded, context).data
    private = nnr.write_unit(33, b"anything")
    return start + private + nnr.write_lps(lps) + nnr.write_topology(nnr.Topology()) + unit


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


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_the_seeds_decode() -> None:
    """What is damaged below is sound before."""
    good = [not is_error(outcome(stream)) for stream in seeds()]
    assert sum(good) >= len(own_streams())
    assert all(not is_error(outcome(stream)) for stream in own_streams())


@pytest.mark.parametrize("seed", range(4))
def test_damaged_streams(seed: int) -> None:
    """40 000 mutants, one by one; both ends must be met, or the mutants are no good."""
    mutator = Mutator(seed, seeds())
    outcomes: Counter[str] = Counter()
    for _ in range(10_000):
        stream = mutator.mutant()
        found = timed(stream, lambda stream=stream: outcome(stream))
        outcomes[found[0].__name__ if is_error(found) else "decoded"] += 1
    for name in ("decoded", "InvalidBitstream", "TruncatedBitstream", "UnsupportedFeature"):
        assert outcomes[name] >= 20, outcomes


def test_threads_find_the_same(pool: ThreadPoolExecutor) -> None:
    mutator = Mutator(100, seeds())
    for _ in range(3000):
        stream = mutator.mutant()
        alone = timed(stream, lambda stream=stream: outcome(stream))
        together = timed(stream, lambda stream=stream: outcome(stream, executor=pool))
        assert alone == together or (is_error(alone) and is_error(together)), stream.hex()


def test_sources_find_the_same() -> None:
    """A file, and a pipe that gives a few bytes per read, against the bytes themselves."""
    mutator = Mutator(200, seeds())
    for _ in range(600):
        stream = mutator.mutant()
        expected = outcome(stream)
        assert outcome(io.BytesIO(stream)) == expected, stream.hex()
        assert outcome(ShortReads(stream)) == expected, stream.hex()


class ShortReads(io.RawIOBase):
    """A pipe whose reads give 1, 2, 3, 1, … bytes, however many are wanted."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._source = io.BytesIO(data)
        self._calls = 0

    def read(self, size: int = -1) -> bytes:
        self._calls += 1
        return self._source.read(min(size, 1 + self._calls % 3))


@pytest.mark.parametrize("series", ["hist_tca", "hist_scan1", "update_codebook", "hist_urq"])
def test_damaged_series(series: str, pool: ThreadPoolExecutor) -> None:
    """A parent or the update itself is damaged, or streams are missing or in another order."""
    streams = [vector(f"{series}_{step}") for step in range(3)]
    assert not is_error(outcome(streams[-1], streams[:-1]))
    mutator = Mutator(300, streams)
    decoded = 0
    for _ in range(500):
        chain = list(streams)
        kind = mutator.random.randrange(4)
        if kind == 0:
            mutator.random.shuffle(chain)
        elif kind == 1:
            del chain[mutator.random.randrange(2)]
        else:
            chain[mutator.random.randrange(3)] = mutator.mutant()
        *parents, stream = chain
        alone = timed(stream, lambda s=stream, p=parents: outcome(s, p))
        together = outcome(stream, parents, pool)
        same = alone == together or (is_error(alone) and is_error(together))
        assert same, [data.hex() for data in chain]
        decoded += not is_error(alone)
    assert decoded > 10


# ---- The educational decoder --------------------------------------------------------------------

SMALL = DecodeLimits(max_elements_per_tensor=2**13, max_elements=2**14)

KNOWN_REFUSALS = (
    # Ours alone refuses, by its errors' texts: what the plain decoder has no need to check.
    "too small",  # counts of performance maps
    "mps_parent_signalling_enabled_flag",
    "factors too large for an exact product",
    "a string is not UTF-8",  # in data that the plain decoder passes over
)
KNOWN_ACCEPTANCES = (
    # The plain decoder alone refuses: factors in units of their own (E9).
    "the factors of",
)


@cache
def plain_decoder() -> Any:
    """spec/educational_decoder.py as a module."""
    path = ROOT / "spec" / "educational_decoder.py"
    spec = importlib.util.spec_from_file_location("educational_decoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["educational_decoder"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def both(stream: bytes, parents: Sequence[bytes] = ()) -> tuple[Arrays | str, Arrays | str]:
    """What our decoder and the plain one make of a stream: tensors, or the error's text."""
    found: list[Arrays | str] = []
    for decode, more in ((nnr_codec.decode, {"limits": SMALL}), (plain_decoder().decode, {})):
        try:
            found.append(decode(stream, parents=parents, **more))
        except LimitExceeded:
            return "limit", "limit"  # too slow for the plain decoder
        except (BitstreamError, ValueError) as error:
            found.append(str(error))
    return found[0], found[1]


def same_arrays(ours: Arrays, plain: Arrays) -> bool:
    """Names, types, shapes and values; products of factors up to the last bit (errata E20)."""
    if set(ours) != set(plain):
        return False
    for name, values in ours.items():
        other = plain[name]
        if (values.dtype, values.shape) != (other.dtype, other.shape):
            return False
        exact = np.array_equal(values, other, equal_nan=values.dtype.kind == "f")
        if not exact and not np.allclose(values, other, rtol=3e-7, atol=0, equal_nan=True):
            return False
    return True


def disagreement(ours: Arrays | str, plain: Arrays | str) -> str:
    """What the decoders disagree on, if it is no known difference; else nothing."""
    if isinstance(ours, str) and isinstance(plain, str):
        return ""
    if isinstance(ours, str):
        return "" if any(known in ours for known in KNOWN_REFUSALS) else f"ours alone: {ours}"
    if isinstance(plain, str):
        return "" if any(known in plain for known in KNOWN_ACCEPTANCES) else f"plain alone: {plain}"
    return "" if same_arrays(ours, plain) else "the tensors differ"


def test_the_plain_decoder_agrees() -> None:
    """Both accept or both refuse, and both find the same tensors."""
    # The plain decoder does not know the model map.
    small = [stream for stream in seeds() if len(stream) < 1500 and stream not in mapped_streams()]
    mutator = Mutator(500, small)
    decoded = 0
    for _ in range(4000):
        stream = mutator.mutant()
        ours, plain = both(stream)
        found = disagreement(ours, plain)
        assert not found, f"{found}: {stream.hex()}"
        decoded += not isinstance(ours, str)
    assert decoded > 50


@pytest.mark.parametrize("series", ["hist_tca", "update_codebook"])
def test_the_plain_decoder_agrees_on_series(series: str) -> None:
    streams = [vector(f"{series}_{step}") for step in range(3)]
    mutator = Mutator(600, streams)
    decoded = 0
    for _ in range(150):
        chain = list(streams)
        chain[mutator.random.randrange(3)] = mutator.mutant()
        ours, plain = both(chain[2], chain[:2])
        found = disagreement(ours, plain)
        assert not found, f"{found}: {[data.hex() for data in chain]}"
        decoded += not isinstance(ours, str)
    assert decoded > 5


# ---- Memory -------------------------------------------------------------------------------------

ALLOWED_MEMORY = 96 * 2**20
"""What limits of 2**21 elements in all may cost: 8 to 16 bytes each for integers, values and their
conversion make 32 MiB; headers, products and the allocator's slack the rest."""


def memory_child() -> None:
    """Run in a process of its own: mutants under a limit of address space."""
    mutator = Mutator(int(sys.argv[2]), seeds())
    for stream in seeds()[:20]:
        outcome(stream)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            now = 1024 * int(line.split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (now + ALLOWED_MEMORY, now + ALLOWED_MEMORY))
    for stream in [*bombs(), *(mutator.mutant() for _ in range(3000))]:
        try:
            nnr_codec.decode(stream, limits=LIMITS)
        except BitstreamError as error:
            if isinstance(error, LimitExceeded) and "memory" in error.limit:
                raise AssertionError(stream.hex()[:4000]) from error
        except BaseException:
            print(stream.hex()[:4000])
            raise
    print("within the limit")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_memory_stays_within_the_limits() -> None:
    """No decoding runs out of a limited address space: neither MemoryError nor our word for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--memory", "7"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.strip().endswith("within the limit")


def single_value_unit(dimensions: list[int], context: nnr.Context, **more: Any) -> bytes:
    """A tensor with a codebook of one value, which takes no bins at all: the smallest bomb."""
    record = nnr.DataUnit(names=["w"], tensor_dimensions=dimensions, **more)
    record.codebooks = [nnr.Codebook(values=[1])]
    return nnr.write_data_unit(record, qp_alone(), context)


def qp_alone() -> bytes:
    """The codeword of qp_delta = 0 and nothing else, at density 2."""
    syntax = nnr_codec._core.TensorSyntax(1, 1, second_edition=True, codebook_size=1)
    levels = np.zeros(1, np.int32)
    return nnr_codec._core.encode_codeword([nnr_codec._core.TensorToEncode(syntax, levels)], 8)[0]


def bombs() -> list[bytes]:
    """Streams of some hundred bytes that ask for all that LIMITS allow, and more."""
    start, context = head(1)
    made = [start + single_value_unit(d, context) for d in ([2**20], [2**10, 2**10], [2**19, 2])]
    made += [start + single_value_unit([2**20, 2**20], context)]
    start, context = head(0)
    for dimensions in ([2**20], [2**16, 16], [16, 2**16]):
        record = nnr.DataUnit(names=["w"], tensor_dimensions=dimensions, scan_order=0)
        made.append(start + nnr.write_data_unit(record, bytes(2000), context))
    return made


def test_bombs_within_the_limits_decode() -> None:
    found = [outcome(stream) for stream in bombs()]
    assert [is_error(f) for f in found] == [False, False, False, True, True, True, True]
    assert found[3] == (LimitExceeded,)
    assert len(found[0][0][3]) == 4 * 2**20


# ---- Lies ---------------------------------------------------------------------------------------


def peak_of(stream: Any, error: type[Exception], **more: Any) -> int:
    """Bytes that Python and numpy had allocated at most when the stream was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(error):
            nnr_codec.decode(stream, **more)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LITTLE = 2**20


class Header(BitWriter):
    """A data unit of profile 0, written element by element so that it can lie."""

    def __init__(self, payload_type: int = 1, *, block: int = 0, name: str = "w") -> None:
        super().__init__()
        self.u(5, payload_type)
        self.u(1, block)
        self.u(1, 0)  # nnr_decompressed_data_format_present_flag
        self.u(1, 1)  # input_parameters_present_flag
        if not block:
            self.st(name)

    def stream(self, payload: bytes = bytes(16)) -> bytes:
        return head(0)[0] + nnr.write_unit(5, self.to_bytes(), payload)


def lying_header(kind: str) -> bytes:
    """A header whose count is a lie; the rest of the unit is some zeros."""
    header = Header(3 if kind == "names" else 1, block=int(kind == "names"))
    if kind == "names":
        header.ue(7, 2**30)
        return header.stream()
    header.u(1, int(kind == "codebook"))
    if kind == "codebook":
        header.u(4, 0)
        header.ue(2, 2**29)
        return header.stream()
    header.u(1, 0)  # dq_flag
    header.u(2, 2)  # dimensions, no unary length
    header.u(4, 0)
    if kind == "dimensions":
        header.ue(1, 2**30)
        return header.stream()
    header.ue(1, 2)
    header.ue(7, 2**24)
    header.ue(7, 2)
    header.u(4, 1)  # scan_order: 2**21 - 1 entry points
    return header.stream()


@pytest.mark.parametrize("kind", ["names", "codebook", "dimensions", "entry points"])
def test_counts_that_lie(kind: str) -> None:
    assert peak_of(lying_header(kind), BitstreamError) < LITTLE


def test_a_kilobyte_that_claims_a_tebi() -> None:
    start, context = head(0)
    record = nnr.DataUnit(names=["w"], tensor_dimensions=[2**20, 2**20])
    stream = start + nnr.write_data_unit(record, bytes(1000), context)
    assert peak_of(stream, LimitExceeded) < LITTLE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitExceeded, match=str(2**40)):
        nnr_codec.decode(stream)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LITTLE // 1024


@pytest.mark.parametrize("dimensions", [[2**32 - 2**8] * 32, [1] * 31 + [2**31]])
def test_products_do_not_overflow(dimensions: list[int]) -> None:
    start, context = head(0)
    record = nnr.DataUnit(names=["w"], tensor_dimensions=dimensions)
    stream = start + nnr.write_data_unit(record, bytes(100), context)
    assert peak_of(stream, LimitExceeded) < LITTLE


def test_a_unit_size_on_a_short_pipe() -> None:
    stream = head(0)[0] + b"\xff\xff\xff\xff" + bytes(1000)
    assert peak_of(ShortReads(stream), TruncatedBitstream) < LITTLE
    assert peak_of(io.BytesIO(stream), TruncatedBitstream) < 2 * LITTLE


def test_all_tensors_together_have_a_limit() -> None:
    start, context = head(1)
    units = []
    for index in range(4):
        record = nnr.DataUnit(names=[f"w{index}"], tensor_dimensions=[2**10, 2**10])
        record.codebooks = [nnr.Codebook()]
        units.append(nnr.write_data_unit(record, qp_alone(), context))
    limits = DecodeLimits(max_elements=3 * 2**20)
    assert len(nnr_codec.decode(start + b"".join(units[:3]), limits=limits)) == 3
    with pytest.raises(LimitExceeded, match="max_elements"):
        nnr_codec.decode(start + b"".join(units), limits=limits)


def factor_bomb(rows: int, rank: int, cols: int) -> bytes:
    """A decomposed weight whose factors take no bins: rows * rank * cols products for nothing."""
    start, context = head(1)
    record = nnr.DataUnit(
        nnr.PayloadType.BLOCK,
        ["x_G", "x_H"],
        compressed_parameter_types=1,
        decomposition_rank=rank,
        g_number_of_rows=rows,
        tensor_dimensions=[rows, cols],
        codebooks=[nnr.Codebook(), nnr.Codebook()],
    )
    syntax = nnr_codec._core.TensorSyntax(1, 1, second_edition=True, codebook_size=1)
    empty = nnr_codec._core.TensorToEncode(syntax, np.zeros(1, np.int32))
    payload = nnr_codec._core.encode_codeword([empty, empty], 8)[0]
    return start + nnr.write_data_unit(record, payload, context)


def test_factors_count_as_elements() -> None:
    assert not is_error(outcome(factor_bomb(2**10, 2, 2**9)))
    assert outcome(factor_bomb(2, 2**20, 2)) == (LimitExceeded,)
    assert outcome(factor_bomb(2**10, 2**10, 2**10)) == (LimitExceeded,)


# ---- Odd streams --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [b"", bytearray(), memoryview(b""), io.BytesIO()])
def test_nothing_at_all(source: Any) -> None:
    with pytest.raises(TruncatedBitstream, match="empty"):
        nnr_codec.decode(source)


def test_units_out_of_order() -> None:
    start, mps, topology, *data = units_of(own_streams()[0])
    for order in (
        [mps, start, topology, *data],
        [*data, start, mps],
        [start, *data, mps],
        [start, mps, mps, *data],
        [start, start, mps, *data],
        [start, mps, *data, *data],
        [start, mps, *data, start],
    ):
        with pytest.raises(InvalidBitstream):
            nnr_codec.decode(b"".join(order))
    assert tensors_of(nnr_codec.decode(b"".join([start, topology, mps, *data, topology])))


@pytest.mark.parametrize("stream", [0, 3, 6])
def test_a_pipe_that_ends_early(stream: int) -> None:
    """Every length: an error, or, at a unit's end, the tensors so far."""
    data = own_streams()[stream]
    whole = nnr_codec.decode(data)
    ends, position = set(), 0
    for unit in units_of(data):
        position += len(unit)
        ends.add(position)
    for length in range(len(data)):
        found = outcome(ShortReads(data[:length]))
        if length in ends:
            assert found == tensors_of(whole)[: len(found)]
        else:
            assert found == (TruncatedBitstream,)


def test_steps_outside_binary32() -> None:
    """The quantization parameters that a header can say reach far beyond any float."""
    start, context = head(0)
    (unit,) = units_of(own_streams()[2])[3:4]
    for density in (0, 7):
        for parameter in (-4096, 4095):
            lps = nnr.LayerParameterSet(
                lps_qp_density=density, lps_quantization_parameter=parameter
            )
            found = outcome(start + nnr.write_lps(lps) + unit)
            assert is_error(found) or all(np.isfinite(np.frombuffer(found[0][3], found[0][1])))
    del context


@pytest.mark.parametrize("data_format", [nnr.DataFormat.FLOAT16, None])
def test_products_beyond_the_float_format_are_infinite(data_format: Any) -> None:
    """No warning, no NaN: the step is finite, and an infinite weight has its sign."""
    start, context = head(0, mps_quantization_parameter=500)
    record = nnr.DataUnit(
        names=["w"], tensor_dimensions=[3], nnr_decompressed_data_format=data_format
    )
    levels = CodedLevels(np.array([-(2**20), 0, 2**20], np.int32), qp=500 - 1)
    unit = encode_data_unit(record, {"weight": levels}, context).data
    values = nnr_codec.decode(start + unit)["w"]
    assert values.tolist() == [-np.inf, 0, np.inf]


def test_weights_beyond_float16_are_infinite() -> None:
    start, context = head(0)
    record = nnr.DataUnit(
        names=["w"], tensor_dimensions=[2], nnr_decompressed_data_format=nnr.DataFormat.FLOAT16
    )
    levels = CodedLevels(np.array([70_000, -1], np.int32), qp=0)
    unit = encode_data_unit(record, {"weight": levels}, context).data
    assert nnr_codec.decode(start + unit)["w"].tolist() == [np.inf, -1]


def raw_stream(data_format: nnr.DataFormat) -> bytes:
    start, context = head(0)
    record = nnr.DataUnit(
        nnr.PayloadType.RAW_FLOAT,
        ["w"],
        tensor_dimensions=[3],
        nnr_decompressed_data_format=data_format,
    )
    return start + nnr.write_data_unit(record, bytes(12), context)


@pytest.mark.parametrize("name", ["FLOAT16", "FLOAT64"])
def test_raw_floats_have_their_format(name: str) -> None:
    decoded = nnr_codec.decode(raw_stream(nnr.DataFormat[name]))
    assert decoded["w"].dtype.name == name.lower()


def test_raw_floats_are_no_integers() -> None:
    with pytest.raises(BitstreamError):
        nnr_codec.decode(raw_stream(nnr.DataFormat.INT8))


def test_threads_find_the_same_error(pool: ThreadPoolExecutor) -> None:
    """A damaged codeword in one unit, a damaged header in the next: the first is to be told."""
    units = units_of(own_streams()[0])
    start, context = head(0)
    record = nnr.DataUnit(names=["v"], tensor_dimensions=[64], scan_order=0)
    damaged = nnr.write_data_unit(record, b"\x12" * 8 + b"\0" * 40, context)
    stream = b"".join([start, damaged, nnr.write_unit(9, b""), *units[3:]])
    errors = []
    for executor in (None, pool):
        with pytest.raises(BitstreamError) as caught:
            nnr_codec.decode(stream, executor=executor)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_vectors_of_a_block_count_as_elements() -> None:
    start, context = head(0)
    names = ["x", "x.ls", "x.beta", "x.gamma", "x.mean", "x.var", "x.bias"]
    record = nnr.DataUnit(
        nnr.PayloadType.BLOCK, names, compressed_parameter_types=14, tensor_dimensions=[100]
    )
    coded = {role: CodedLevels(ramp(100)) for role in record.coding_roles()}
    stream = start + encode_data_unit(record, coded, context).data
    assert sum(a.size for a in nnr_codec.decode(stream).values()) == 700
    with pytest.raises(LimitExceeded):
        nnr_codec.decode(stream, limits=DecodeLimits(max_elements=699))


@pytest.mark.parametrize("name", ["update_tca_1", "hist_urq_1", "hist_scan1_1", "hist_tca_3"])
def test_a_parent_that_is_missing(name: str) -> None:
    """Without its parents an update is no damaged stream."""
    with pytest.raises(MissingParent):
        nnr_codec.decode(vector(name))


def test_a_parent_of_another_shape() -> None:
    options = nnr_codec.EncodeOptions(qp=-8)
    first = nnr_codec.encode({"w": ramp(8, 8).astype(np.float32)}, options=options).data
    second = nnr_codec.encode(
        {"w": ramp(8, 8).astype(np.float32)}, options=options, parents=[first]
    ).data
    other = nnr_codec.encode({"w": ramp(8, 4).astype(np.float32)}, options=options).data
    assert nnr_codec.decode(second, parents=[first])
    with pytest.raises(InvalidBitstream, match="elements"):
        nnr_codec.decode(second, parents=[other])


def test_an_update_of_one_row_decodes() -> None:
    """hist_dep_sig_prob_enabled_flag exists for matrices of two and more rows and columns."""
    values = np.array([[0, 1, 0, 2, 2, 0]], np.float32)
    options = nnr_codec.EncodeOptions(qp=0, dq=False)
    first = nnr_codec.encode({"w": values}, options=options).data
    second = nnr_codec.encode({"w": values}, options=options, parents=[first]).data
    assert nnr_codec.decode(second, parents=[first])["w"].tolist() == values.tolist()


def test_a_constant_in_blocks_can_be_encoded() -> None:
    options = nnr_codec.EncodeOptions(codebook=True, dq=False, scan_order=1, profile=1)
    values = np.ones((20, 20), np.float32)
    stream = nnr_codec.encode({"w": values}, options=options).data
    assert np.allclose(nnr_codec.decode(stream)["w"], values, atol=0.01)


@pytest.mark.parametrize("kwargs", [{"only": "*"}, {"only": "nothing"}, {"layers": "factorized"}])
def test_ways_of_asking(kwargs: dict[str, Any]) -> None:
    mutator = Mutator(400, seeds())
    for _ in range(400):
        stream = mutator.mutant()
        timed(stream, lambda stream=stream: outcome(stream, **kwargs))


def test_errors_are_of_one_family() -> None:
    for kind in (InvalidBitstream, TruncatedBitstream, UnsupportedFeature, LimitExceeded):
        assert issubclass(kind, BitstreamError)
    assert issubclass(BitstreamError, NnrError)


if __name__ == "__main__" and sys.argv[1:2] == ["--memory"]:
    memory_child()
