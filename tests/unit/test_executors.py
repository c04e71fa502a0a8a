"""Any executor gives the same bytes: threads, processes, and a Dask client's workers."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import numpy as np
import pytest
from factored_streams_support import mixture
from threadpoolctl import threadpool_limits

import nnr_codec
from nnr_codec import EncodeOptions
from nnr_codec.decompose import decompose_model
from nnr_codec.model import Array, Model, Parameter
from nnr_codec.options import DecompositionOptions

T = TypeVar("T")


@contextmanager
def dask_executor() -> Iterator[Executor]:
    """Give the executor of a client with two local workers, each a process of one thread."""
    distributed = pytest.importorskip("distributed", reason="needs distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        yield executor


@pytest.fixture(scope="module", params=["threads", "one process", "two processes", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with ExitStack() as stack:
        if request.param == "dask":
            yield stack.enter_context(dask_executor())
        elif request.param == "threads":
            yield stack.enter_context(ThreadPoolExecutor(2))
        else:
            # As on other systems: nothing of this process is there already.
            processes = 1 if request.param == "one process" else 2
            pool = ProcessPoolExecutor(processes, mp_context=get_context("forkserver"))
            yield stack.enter_context(pool)


def weights(seed: int, scale: float = 0.05) -> dict[str, Array]:
    """Weights and vectors, some that travel exactly, of 40 000 elements."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for number in range(6):
        arrays[f"{number}.weight"] = rng.normal(0, scale, (80, 80)).astype(np.float32)
        arrays[f"{number}.bias"] = rng.normal(0, scale, 80).astype(np.float32)
        arrays[f"{number}.steps"] = rng.integers(0, 2**40, 5)
    return arrays


@lru_cache
def update() -> tuple[bytes, bytes]:
    """Return a stream, and one that has it as its parent."""
    parent = nnr_codec.encode(weights(0)).data or b""
    return parent, nnr_codec.encode(weights(1, 0.02), parents=[parent]).data or b""


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, strict=True)


def test_encoding_with_factors(executor: Executor) -> None:
    model, factors = mixture()
    alone = nnr_codec.encode(model, factorizations=factors)
    result = nnr_codec.encode(model, factorizations=factors, executor=executor)
    assert result.data == alone.data
    assert result.report.tensors == alone.report.tensors
    for layers in ("dense", "factorized"):
        expected = nnr_codec.decode(alone.data or b"", layers=layers)
        assert_same(nnr_codec.decode(alone.data or b"", layers=layers, executor=executor), expected)


def test_encoding_to_a_target_size(executor: Executor) -> None:
    model, factors = mixture()
    options = EncodeOptions(target_size=0.6)
    alone = nnr_codec.encode(model, factorizations=factors, options=options)
    result = nnr_codec.encode(model, factorizations=factors, options=options, executor=executor)
    assert result.data == alone.data
    assert result.report.encodings == alone.report.encodings > 1


def test_encoding_of_an_update(executor: Executor) -> None:
    parent, stream = update()
    result = nnr_codec.encode(weights(1, 0.02), parents=[parent], executor=executor)
    assert result.data == stream


def test_decoding_of_an_update(executor: Executor) -> None:
    parent, stream = update()
    expected = nnr_codec.decode(stream, parents=[parent])
    assert_same(nnr_codec.decode(stream, parents=[parent], executor=executor), expected)


@pytest.mark.parametrize("amount", [{"energy": 0.8}, {"compression_ratio": 1.5}])
def test_decomposition(executor: Executor, amount: dict[str, Any]) -> None:
    options = EncodeOptions(decomposition=DecompositionOptions("lr", **amount))
    model = Model.from_arrays(weights(0))
    alone = decompose_model(model, options)
    result = decompose_model(model, options, executor=executor)
    assert list(result.factorizations) == list(alone.factorizations) != []
    for name, factored in alone.factorizations.items():
        for made, expected in zip(
            result.factorizations[name].factors, factored.factors, strict=True
        ):
            np.testing.assert_array_equal(made, expected, strict=True)


def test_decomposition_with_several_blas_threads(executor: Executor) -> None:
    """With another number of these, products of large matrices round otherwise."""
    arrays = {f"{n}.weight": np.random.default_rng(n).normal(0, 0.05, (400, 400)) for n in (1, 2)}
    model = Model.from_arrays({name: values.astype(np.float32) for name, values in arrays.items()})
    options = EncodeOptions(decomposition=DecompositionOptions("lr", rank=20))
    results = set()
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            for workers in (None, executor):
                made = decompose_model(model, options, executor=workers).factorizations
                assert list(made) == ["2.weight"]
                factors = made["2.weight"].factors
                results.add(b"".join(factor.tobytes() for factor in factors))
    assert len(results) == 1


def test_error_of_a_tensor(executor: Executor) -> None:
    model = weights(0)
    broken = Parameter("3.weight", (4, 4), np.dtype("f4"), partial(np.zeros, (3, 3), "f4"))
    parameters = [Parameter.from_array(name, values) for name, values in model.items()]
    parameters = [broken if p.name == broken.name else p for p in parameters]
    options = EncodeOptions(group=False)
    with pytest.raises(nnr_codec.InvalidModel) as caught:
        nnr_codec.encode(Model(parameters), options=options, executor=executor)
    assert caught.value.parameter == "3.weight"


class ForeignError(Exception):
    """Cannot be made again of what pickle keeps of it: the message."""

    def __init__(self, library: str, reason: str) -> None:
        super().__init__(f"{library}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return ForeignError, self.args


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise ForeignError("libforeign", "no convergence")


@pytest.mark.parametrize(
    ("function", "tensor"),
    [
        ("encoding.tensor_survey.represent", "0.steps"),
        ("encoding.tensor_encoder.quantize_tensor", "0.weight"),
        ("encoding.weight_errors.weight_error", "1.weight"),
        ("decompose.select.decomposed", "1.weight"),
    ],
)
def test_foreign_errors_name_the_tensor(
    monkeypatch: pytest.MonkeyPatch, function: str, tensor: str
) -> None:
    """An exception that cannot be unpickled would break the pool."""
    monkeypatch.setattr(f"nnr_codec.{function}", _refuse)
    options = EncodeOptions(decomposition=DecompositionOptions("lr", rank=4))
    message = rf"tensor '{tensor}': ForeignError: libforeign: no convergence"
    pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))
    with pool as executor, pytest.raises(nnr_codec.NnrError, match=message):
        nnr_codec.encode(weights(0), options=options, executor=executor)


def test_foreign_errors_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = nnr_codec.encode(weights(0), options=EncodeOptions(group=False)).data or b""
    monkeypatch.setattr("nnr_codec.decoding.stream_decoder.decode_data_unit", _refuse)
    pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))
    message = r"'0\.weight': ForeignError: libforeign: no convergence"
    with pool as executor, pytest.raises(nnr_codec.NnrError, match=message):
        nnr_codec.decode(data, executor=executor)


@pytest.fixture
def task_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each task that process pools pickle."""
    sizes: list[int] = []

    class Counting(ForkingPickler):
        @classmethod
        def dumps(cls, value: Any, protocol: int | None = None) -> Any:
            data = ForkingPickler.dumps(value, protocol)
            sizes.append(len(data))
            return data

    monkeypatch.setattr("multiprocessing.queues._ForkingPickler", Counting)
    return sizes


def test_earlier_streams_travel_once(task_sizes: list[int]) -> None:
    """Of an element travel its value and, with history and last integer, five bytes of its past."""
    parent, stream = update()
    model = weights(1, 0.02)
    elements = sum(values.size for values in model.values())
    with ProcessPoolExecutor(2) as executor:
        assert nnr_codec.encode(model, parents=[parent], executor=executor).data == stream
        assert 9 * elements < sum(task_sizes) < 10.5 * elements + len(parent)
        task_sizes.clear()
        nnr_codec.decode(stream, parents=[parent], executor=executor)
        assert sum(task_sizes) < 6 * elements + len(parent) + len(stream)


def test_options_travel_once_to_each_worker(task_sizes: list[int]) -> None:
    """The options of all tensors are larger than the tensors of a batch."""
    names = [f"layer{number}.weight" for number in range(120)]
    overrides = tuple((f"{name}{end}", {"qp": -30}) for name in names for end in ("", "[0]", "?"))
    model = {name: np.full((2, 2), number, np.float32) for number, name in enumerate(names)}
    options = EncodeOptions(overrides=overrides)
    alone = nnr_codec.encode(model, options=options)
    with ProcessPoolExecutor(2) as executor:
        result = nnr_codec.encode(model, options=options, executor=executor)
    assert result.data == alone.data
    assert len(task_sizes) >= 10
    assert sum(size > sum(map(len, names)) * 3 for size in task_sizes) <= 2 * 2


def in_time(function: Callable[[], T]) -> T:
    """Return what a function returns, or raise its error, unless it hangs."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(60)


def _fail() -> None:
    raise ValueError("no licence")


def test_initializer_that_fails() -> None:
    data = nnr_codec.encode(weights(0)).data or b""
    with pytest.raises(BrokenExecutor, match="initializer"):
        in_time(lambda: nnr_codec.encode(weights(0), executor=ThreadPoolExecutor(2, "", _fail)))
    with pytest.raises(BrokenExecutor, match="initializer"):
        in_time(lambda: nnr_codec.decode(data, executor=ThreadPoolExecutor(2, "", _fail)))


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_pool_that_is_shut_down_meanwhile(kind: type[Executor]) -> None:
    executor = kind(2)  # type: ignore[call-arg]
    model = {f"{name}.{n}": values for n in range(10) for name, values in weights(n).items()}

    def shut_down(_: object) -> None:
        executor.shutdown(wait=False, cancel_futures=True)

    with pytest.raises((CancelledError, RuntimeError)):
        in_time(lambda: nnr_codec.encode(model, executor=executor, progress=shut_down))


@pytest.mark.parametrize("scan_order", [0, 1])
def test_calls_from_the_threads_of_the_executor(scan_order: int) -> None:
    """All of them wait for results that none but they can make."""
    options = EncodeOptions(scan_order=scan_order)
    models = [weights(seed) for seed in range(4)]
    streams = [nnr_codec.encode(model, options=options).data or b"" for model in models]
    pool = ThreadPoolExecutor(2)

    def encode(model: dict[str, Array]) -> bytes | None:
        return nnr_codec.encode(model, options=options, executor=pool).data

    def decode(stream: bytes) -> dict[str, Array]:
        return nnr_codec.decode(stream, executor=pool)

    assert in_time(lambda: list(pool.map(encode, models))) == streams
    for made, stream in zip(in_time(lambda: list(pool.map(decode, streams))), streams, strict=True):
        assert_same(made, nnr_codec.decode(stream))
    pool.shutdown()


def test_threads_of_other_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 has them; they have copies of what they are sent."""

    class Interpreters(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
            function, args = pickle.loads(pickle.dumps((function, args)))
            return super().submit(function, *args)

    monkeypatch.setattr(futures, "InterpreterPoolExecutor", Interpreters, raising=False)
    options = EncodeOptions(scan_order=1)
    alone = nnr_codec.encode(weights(0), options=options).data or b""
    with Interpreters(2) as executor:
        assert nnr_codec.encode(weights(0), options=options, executor=executor).data == alone
        assert_same(nnr_codec.decode(alone, executor=executor), nnr_codec.decode(alone))
