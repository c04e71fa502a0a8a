"""Streams that ask for much: memory and time stay within the limits."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_support import LIMITS, Mutator, ShortReads, head, is_error, outcome, seeds
from peak_memory import Work, measured

import nnr_codec
from nnr_codec import DecodeLimits
from nnr_codec import bitstream as nnr
from nnr_codec.bitstream.bits import BitWriter
from nnr_codec.errors import BitstreamError, LimitExceeded, TruncatedBitstream

pytestmark = pytest.mark.filterwarnings("error")  # damage must not show as warnings of numpy


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
    stream = head(0)[0] + b"\xff\xff\xff\xff\x14" + bytes(1000)  # of a data unit
    assert peak_of(ShortReads(stream), TruncatedBitstream) < LITTLE
    assert peak_of(io.BytesIO(stream), TruncatedBitstream) < 2 * LITTLE


def wide(dimensions: list[int]) -> bytes:
    start, context = head(0)
    record = nnr.DataUnit(names=["w"], tensor_dimensions=dimensions)
    return start + nnr.write_data_unit(record, bytes(1000), context)


def refused() -> dict[str, bytes]:
    """Streams that ask for much and are refused."""
    kinds = ("names", "codebook", "dimensions", "entry points")
    return {
        **{kind: lying_header(kind) for kind in kinds},
        "a tebi": wide([2**20, 2**20]),
        "overflow": wide([2**32 - 2**8] * 32),
        "a long unit": head(0)[0] + b"\xff\xff\xff\xff\x14" + bytes(1000),
        "factors": factor_bomb(2**16, 2**14, 2**16),
        "damaged": head(0)[0] + Header().to_bytes(),
    }


def test_refused_streams_take_no_memory() -> None:
    """Of the whole process: the core's, too, of which tracemalloc knows nothing."""
    streams = refused()
    works = [Work(name, [stream], reading="all") for name, stream in streams.items()]
    large = Work("decoded", [*bombs()[:1], large_stream()])
    results = measured([Work("warm", [lying_header("names")] * 9), *works, large], DecodeLimits())
    for name in streams:
        (error,) = results[name].outcomes
        assert error in ("LimitExceeded", "TruncatedBitstream", "InvalidBitstream")
        assert results[name].peak < 4 * LITTLE, name
    assert results["decoded"].outcomes == {"decoded": 2}
    assert results["decoded"].peak > 2**25  # what is measured is the core's memory, too


def large_stream() -> bytes:
    """A stream of few bytes that decodes to 2**25 elements."""
    start, context = head(1)
    return start + single_value_unit([2**25], context)


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


if __name__ == "__main__" and sys.argv[1:2] == ["--memory"]:
    memory_child()
