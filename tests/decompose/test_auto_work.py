"""Decomposition for fewer operations, or less time by a clock of our own."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnr_codec import EncodeOptions, InvalidOptions
from nnr_codec.decompose import decompose_model, timing
from nnr_codec.decompose.auto_work import MORE_WORK, WorkBench
from nnr_codec.decompose.layer_kinds import weights_of_model
from nnr_codec.factorization.forms import CP, LowRank
from nnr_codec.model import Model
from nnr_codec.options import DecompositionOptions

torch = pytest.importorskip("torch")
nn = torch.nn
layers = pytest.importorskip("nnr_codec.layers")
factored, FactorizedLayer = layers.factored, layers.FactorizedLayer


def network() -> Any:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2), nn.Conv2d(24, 24, 1),
        nn.Conv2d(24, 24, 3, groups=4), nn.ConvTranspose2d(24, 12, 2), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 40),
    )  # fmt: skip
    with torch.no_grad():  # the second and the last are nearly of rank 3
        for layer in (module[1], module[7]):
            u, s, v = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
            s[3:] *= 0.01
            layer.weight.copy_(((u * s) @ v).reshape(layer.weight.shape))
    return module


def model_of(module: Any) -> Model:
    return Model.from_arrays({n: t.numpy() for n, t in module.state_dict().items()})


INPUTS = torch.ones(2, 3, 16, 16)


def options(objective: str, energy: float | None = None) -> DecompositionOptions:
    return DecompositionOptions("auto", objective=objective, energy=energy)  # type: ignore[arg-type]


def multiplications(layer: Any, inputs: Any) -> int:
    """Count what the ordinary layers in `layer` multiply, from their sizes and outputs."""
    found = []

    def note(part: Any, args: Any, output: Any) -> None:
        if isinstance(part, nn.Linear):
            found.append(part.in_features * output.numel())
            return
        across = args[0] if part.transposed else output
        channels = part.out_channels if part.transposed else part.in_channels
        found.append(channels // part.groups * math.prod(part.kernel_size) * across.numel())

    parts = [part for part in layer.modules() if not list(part.children())]
    handles = [part.register_forward_hook(note) for part in parts]
    layer(inputs)
    for handle in handles:
        handle.remove()
    return sum(found)


def test_macs_are_those_of_the_layers() -> None:
    module = network().eval()
    bench = WorkBench(options("macs"), module, INPUTS)
    rng = np.random.default_rng(0)
    inputs = INPUTS
    weights = {weight.name: weight for weight in weights_of_model(model_of(module), module)}
    for index, layer in enumerate(module):
        weight = weights.get(f"{index}.weight")
        if weight is not None:
            assert bench.cost(weight) == multiplications(layer, inputs), weight.kind
            for form in (LowRank, CP) if weight.kind == "convolution" else (LowRank,):
                shapes = form.factor_shapes(weight.shape, (3,))
                made = form(weight.shape, tuple(rng.normal(size=s).astype("f4") for s in shapes))
                expected = multiplications(factored(layer, made), inputs)
                assert bench.cost(weight, made) == expected, (weight.kind, form.form)
        inputs = layer(inputs)


def test_only_what_has_fewer_operations() -> None:
    module = network()
    chosen = EncodeOptions(decomposition=options("macs"))
    found = decompose_model(model_of(module), chosen, module=module, inputs=(INPUTS, None))
    assert {"1.weight", "7.weight"} <= set(found.factorizations)
    assert found.skipped["2.weight"] == MORE_WORK
    bench = WorkBench(chosen.decomposition, module, INPUTS)
    for weight in weights_of_model(model_of(module), module):
        made = found.factorizations.get(weight.name)
        if made is not None:
            assert bench.cost(weight, made) < bench.cost(weight)
            dense = weight.parameter.read()
            left = np.sum((dense - made.to_dense()) ** 2) / np.sum(dense**2)
            assert left <= 0.01 * (1 + 1e-6)


def test_less_energy_is_less_work() -> None:
    module, costs = network(), []
    bench = WorkBench(options("macs"), module, INPUTS)
    weights = {weight.name: weight for weight in weights_of_model(model_of(module), module)}
    for energy in (0.9, 0.5):
        chosen = EncodeOptions(
            decomposition=options("macs", energy=0.999),
            overrides=(("7.weight", {"energy": energy}),),
        )
        found = decompose_model(model_of(module), chosen, module=module, inputs=INPUTS)
        costs.append(bench.cost(weights["7.weight"], found.factorizations["7.weight"]))
    assert costs[1] < costs[0]


def use_clock(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock, process_time=clock))


@pytest.mark.parametrize(("per_layer", "is_faster"), [(5.0, False), (0.0, True)])
def test_only_what_takes_less_time(
    monkeypatch: pytest.MonkeyPatch, per_layer: float, is_faster: bool
) -> None:
    # A clock by which running a layer takes a time for itself, and one for its parameters.
    now = itertools.count()
    elapsed = [0.0]

    def tick(layer: Any, args: Any, output: Any) -> None:
        if not list(layer.children()):
            elapsed[0] += per_layer + sum(p.numel() for p in layer.parameters()) / 1000

    handle = nn.modules.module.register_module_forward_hook(tick)
    use_clock(monkeypatch, lambda: next(now) * 1e-9 + elapsed[0])
    module = network()
    chosen = EncodeOptions(decomposition=options("latency"))
    found = decompose_model(model_of(module), chosen, module=module, inputs=INPUTS)
    handle.remove()
    assert ("7.weight" in found.factorizations) is is_faster
    assert ("1.weight" in found.factorizations) is is_faster


@contextmanager
def taking(
    monkeypatch: pytest.MonkeyPatch, module: Any, time_of: Callable[[int, int], float]
) -> Iterator[list[Any]]:
    """Have layers of `module` take 1 s, and the n-th one on factors time_of(n, run) s.

    Yields the list of those on factors that ran.
    """
    dense = [layer for layer in module.modules() if not list(layer.children())]
    on_factors: list[Any] = []
    runs: Counter[int] = Counter()
    elapsed = [0.0]

    def tick(layer: Any, args: Any, output: Any) -> None:
        if isinstance(layer, FactorizedLayer):
            if layer not in on_factors:
                on_factors.append(layer)
            number = on_factors.index(layer)
            elapsed[0] += time_of(number, runs[number])
            runs[number] += 1
        elif layer in dense:
            elapsed[0] += 1.0

    use_clock(monkeypatch, lambda: elapsed[0])
    handle = nn.modules.module.register_module_forward_hook(tick)
    try:
        yield on_factors
    finally:
        handle.remove()


def share_of(module: Any) -> float:
    """Return the share of time of the last layer at rank 3, whatever its error."""
    *_, weight = weights_of_model(model_of(module), module)
    shapes = LowRank.factor_shapes(weight.shape, (3,))
    made = LowRank(weight.shape, tuple(np.ones(shape, np.float32) for shape in shapes))
    return WorkBench(options("latency"), module, INPUTS).share(weight, made)


@pytest.mark.parametrize(
    ("times", "share", "timings"),
    [([0.5, 0.7, 0.6], 0.7, 3), ([0.5, 1.2, 0.5], 1.2, 2), ([0.92, 0.5, 0.5], 0.92, 1)],
)
def test_the_worst_timing_counts_and_ends_it_if_not_faster(
    monkeypatch: pytest.MonkeyPatch, times: list[float], share: float, timings: int
) -> None:
    module = network().eval()
    with taking(monkeypatch, module, lambda number, run: times[number]) as on_factors:
        assert share_of(module) == pytest.approx(share)
    assert len(on_factors) == timings


@pytest.mark.parametrize(("slow", "share"), [(3, 0.5), (2, 9.0)])
def test_some_slow_rounds_do_not_count(
    monkeypatch: pytest.MonkeyPatch, slow: int, share: float
) -> None:
    """The median does: every third run on factors is disturbed, or every second from the first."""
    module = network().eval()

    def time_of(number: int, run: int) -> float:
        return 9.0 if run % slow == 1 else 0.5

    with taking(monkeypatch, module, time_of):
        assert share_of(module) == pytest.approx(share)


@pytest.mark.parametrize(("time", "is_faster"), [(0.92, False), (0.88, True)])
def test_a_little_less_time_is_not_enough(
    monkeypatch: pytest.MonkeyPatch, time: float, is_faster: bool
) -> None:
    module = network()
    chosen = EncodeOptions(decomposition=options("latency"))
    with taking(monkeypatch, module, lambda number, run: time):
        found = decompose_model(model_of(module), chosen, module=module, inputs=INPUTS)
    assert ("7.weight" in found.factorizations) is is_faster
    if not is_faster:
        assert not found.factorizations
        assert found.skipped["7.weight"] == MORE_WORK


def test_calls_take_turns_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def call(number: int) -> None:
        order.append(number)
        now[0] += number

    calls = [partial(call, number) for number in (1, 2, 4)]
    use_clock(monkeypatch, lambda: now[0])
    assert timing.times_in_turns(calls, 2).tolist() == [[1, 2, 4], [1, 2, 4]]
    assert order == [1, 2, 4, 1, 2, 4, 4, 2, 1]
    assert timing.times_in_turns(calls, 2, seconds=15).shape == (3, 3)


def test_processor_time_if_there_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {"process_time": itertools.count(0, 1), "perf_counter": itertools.count(0, 2)}
    clocks = {name: partial(next, count) for name, count in ticks.items()}
    monkeypatch.setattr(timing, "time", SimpleNamespace(**clocks))
    seen = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        seen.append(timing.times_in_turns([int], 1).item())
    assert seen == [1.0, 2.0]


@pytest.mark.parametrize("objective", ["macs", "latency"])
def test_module_and_inputs_are_needed(objective: str) -> None:
    chosen = EncodeOptions(decomposition=options(objective))
    model = model_of(network())
    for given in ({}, {"module": network()}, {"inputs": INPUTS}):
        with pytest.raises(InvalidOptions, match=r"objective: .* needs a module and inputs"):
            decompose_model(model, chosen, **given)
    with pytest.raises(InvalidOptions, match="module: does not run on the inputs"):
        decompose_model(model, chosen, module=network(), inputs=torch.ones(2, 5))


class Scaled(nn.Linear):  # type: ignore[misc]
    """A layer that does more than its weight tells, so that nothing can stand for it."""

    def forward(self, input: Any) -> Any:
        return 2 * super().forward(input)


class ByKeyword(nn.Module):  # type: ignore[misc]
    """Layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own, self.last = nn.Linear(32, 32), Scaled(32, 32), nn.Linear(32, 32)
        with torch.no_grad():
            for layer in (self.own, self.last):
                layer.weight.copy_(torch.outer(layer.weight[0], layer.weight[1]))

    def forward(self, inputs: Any) -> Any:
        return self.last(input=self.own(input=self.first(input=inputs)))


@pytest.mark.parametrize("objective", ["macs", "latency"])
def test_layers_of_other_kinds_and_calls(objective: str) -> None:
    module = ByKeyword()
    chosen = EncodeOptions(decomposition=options(objective))
    found = decompose_model(model_of(module), chosen, module=module, inputs=torch.ones(64, 32))
    assert found.skipped["own.weight"] == "a Scaled is not executed on factors"
    assert found.skipped.get("last.weight") in (None, MORE_WORK)
    assert objective == "latency" or "last.weight" in found.factorizations
