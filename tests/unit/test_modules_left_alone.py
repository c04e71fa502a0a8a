"""Modules are what they were after an encoding, whatever they do while they run; odd inputs too."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest

import nnr_codec
from nnr_codec import EncodeOptions, EncodeResult
from nnr_codec.errors import NnrWarning
from nnr_codec.options import DecompositionOptions

torch = pytest.importorskip("torch")
nn = torch.nn

from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.perturbation import perturbed  # noqa: E402
from nnr_codec.user.module import sample_count  # noqa: E402

QP = -24


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vectors(sizes: tuple[int, ...] = (16,) * 8) -> list[Any]:
    return [random(size, 32, seed=number) for number, size in enumerate(sizes)]


def layers() -> list[Any]:
    torch.manual_seed(1)
    return [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)]


def network() -> Any:
    return nn.Sequential(*layers()).eval()


def encoded(module: Any, batches: Any, qp: int = QP) -> tuple[EncodeResult, list[str]]:
    """Encode, and see to it that the module is what it was."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    threads = torch.get_num_threads()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = nnr_codec.encode(module, options=EncodeOptions(qp=qp), calibration=batches)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert [part.training for part in module.modules()] == modes
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.get_num_threads() == threads
    return result, [str(w.message) for w in caught if issubclass(w.category, NnrWarning)]


def test_copies_that_share_tensors() -> None:
    class Frozen(nn.Sequential):  # type: ignore[misc]
        def __deepcopy__(self, memo: object) -> Any:
            return self

    _, notes = encoded(nn.Sequential(Frozen(*layers()), nn.Linear(8, 8)).eval(), vectors())
    assert any("a copy of the module shares its tensors" in note for note in notes)


def test_what_modules_keep_within_a_call() -> None:
    class Skipping(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(layers())
            self.skips: list[Any] = []

        def forward(self, inputs: Any) -> Any:
            hidden = self.parts[0](inputs)
            self.skips.append(hidden)
            hidden = self.parts[2](torch.relu(hidden))
            return self.parts[4](hidden + self.skips.pop(0))

    module = Skipping().eval()
    result, notes = encoded(module, vectors((16, 16, 16, 16, 16, 9, 7)))
    assert not notes
    assert result.report.correction is not None
    assert module.skips == []


def test_hooks_of_parameters_are_not_called() -> None:
    module, calls = network(), []
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: calls.append(p))
        parameter.register_hook(lambda gradient: calls.append(gradient))
    encoded(module, vectors())
    assert not calls
    module(vectors()[0]).sum().backward()
    assert len(calls) == 2 * len(list(module.parameters()))


def test_train_of_the_user_is_not_called() -> None:
    class Merging(nn.Sequential):  # type: ignore[misc]
        def train(self, mode: bool = True) -> Any:
            raise AssertionError

    module = Merging(*layers())
    result, _ = encoded(module, vectors())
    assert result.report.correction is not None
    assert module.training


def test_weights_that_change_while_they_run() -> None:
    class Clipped(nn.Sequential):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            with torch.no_grad():
                self[0].weight.mul_(0.999)
            return super().forward(inputs)

    with pytest.raises(nnr_codec.InvalidModel, match="changes its weights while it runs"):
        nnr_codec.encode(Clipped(*layers()).eval(), calibration=vectors())


def test_buffers_that_count() -> None:
    class Counting(nn.Sequential):  # type: ignore[misc]
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("none", torch.tensor(float("nan")))
            self.register_buffer("last", torch.zeros(2))

        def forward(self, inputs: Any) -> Any:
            self.calls += 1
            self.last = torch.ones(len(inputs))
            return super().forward(inputs)

    module = Counting(*layers()).eval()
    last, before = module.last, copy.deepcopy(module.state_dict())
    result = nnr_codec.encode(module, options=EncodeOptions(qp=QP), calibration=vectors())
    assert module.calls == 0
    assert module.last is last
    assert torch.equal(module.last, before["last"])
    decoded = nnr_codec.decode(result.data or b"")
    assert decoded["calls"] == 0
    assert list(decoded["last"]) == [0, 0]


def test_one_module_in_two_threads() -> None:
    module = network()
    expected = [encoded(module, vectors(), qp)[0].data for qp in (-24, -28)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda qp: encoded_alone(module, qp), (-24, -28)))
    assert found == expected


def encoded_alone(module: Any, qp: int) -> bytes | None:
    return nnr_codec.encode(module, options=EncodeOptions(qp=qp), calibration=vectors()).data


class Plain(torch.autograd.Function):  # type: ignore[misc]
    """Has no backward."""

    @staticmethod
    def forward(context: Any, inputs: Any) -> Any:
        return inputs.clone()


class Applied(nn.Module):  # type: ignore[misc]
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.network = network()
        self.call = call

    def forward(self, *inputs: Any, **others: Any) -> Any:
        return self.call(self.network, *inputs, **others)


def test_modules_that_cannot_be_differentiated() -> None:
    module = Applied(lambda network, x: Plain.apply(network(x))).eval()
    result, notes = encoded(module, vectors())
    assert "cannot be differentiated (NotImplementedError" in notes[0]
    feedback = {tensor.name: tensor.feedback for tensor in result.report.tensors}
    assert feedback["network.2.weight"] == "inputs"


def test_inputs_that_are_not_all_of_samples() -> None:
    edges = torch.randint(0, 16, (2, 40), generator=torch.Generator().manual_seed(3))
    graph = Applied(lambda network, x, edges: network(x + x[edges[0]].mean(0))).eval()
    _, notes = encoded(graph, [((x, edges), None) for x in vectors()])
    assert not notes
    optional = Applied(lambda network, ids, embeds: network(embeds)).eval()
    _, notes = encoded(optional, [{"ids": None, "embeds": x} for x in vectors()])
    assert not notes
    assert sample_count((None, True, torch.ones(()))) == 1


def test_inputs_that_cannot_be_perturbed() -> None:
    def call(network: Any, x: Any) -> Any:
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError
        return network(x)

    result, _ = encoded(Applied(call).eval(), [x.sigmoid().round() for x in vectors()])
    feedback = {tensor.name: tensor.feedback for tensor in result.report.tensors}
    assert feedback["network.2.weight"] == "result"


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("setting", "call"),
    [("perturb", "perturb(inputs, generator)"), ("loss", "loss(outputs, targets)")],
)
def test_settings_of_the_user_that_fail(setting: str, call: str) -> None:
    given = {setting: lambda one: one}
    gradients = OutputGradients.by_settings(network(), given)
    with pytest.raises(nnr_codec.InvalidOptions) as caught:
        calibrate(network(), vectors(), gradients=gradients)
    assert f"the setting {setting!r} failed: TypeError" in str(caught.value)
    assert call in str(caught.value)


def test_calibrations_of_other_models() -> None:
    known = calibrate(network(), vectors(), gradients=OutputGradients(network()))
    with pytest.raises(nnr_codec.InvalidOptions, match="of another model, which has"):
        nnr_codec.encode({"a": np.ones((4, 4), np.float32)}, calibration=known)


def test_notes_of_calibrations_stay_where_streams_are_searched_for() -> None:
    module = Applied(lambda network, x: network(x).detach()).eval()
    options = EncodeOptions(max_kl=0.01)
    with pytest.warns(NnrWarning, match="have no gradients"):
        result = nnr_codec.encode(module, options=options, calibration=vectors())
    assert result.report.correction is not None


def test_perturbed_inputs_keep_their_types() -> None:
    generator = torch.Generator().manual_seed(0)
    given = {"pair": Pair(torch.ones(3), 1), "list": [torch.arange(4.0)], "tuple": (None, "a")}
    found = perturbed(given, generator)
    assert found["pair"] is given["pair"]
    assert type(found["list"]) is list
    assert not torch.equal(found["list"][0], given["list"][0])
    assert found["tuple"] == (None, "a")


def test_layers_that_take_or_give_more_than_others() -> None:
    class Masked(nn.Linear):  # type: ignore[misc]
        def forward(self, inputs: Any, mask: Any) -> Any:
            return super().forward(inputs * mask), mask

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.first, self.last = Masked(32, 64), nn.Linear(64, 8)

        def forward(self, inputs: Any) -> Any:
            hidden, _ = self.first(inputs, torch.ones(32))
            return self.last(torch.relu(hidden))

    result, _ = encoded(Network().eval(), vectors())
    feedback = {tensor.name: tensor.feedback for tensor in result.report.tensors}
    assert feedback["first.weight"] == "none"
    assert feedback["last.weight"] == "result"


def test_layers_without_inputs() -> None:
    module = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4))
    module.register_module("none", nn.Linear(0, 4))
    options = EncodeOptions(decomposition=DecompositionOptions("lr", compression_ratio=1.2))
    call = Applied(lambda network, x: module[1](module[0](x)))
    call.module = module
    assert nnr_codec.encode(call.eval(), options=options, calibration=vectors()).data


def test_what_cannot_be_coded_is_refused_before_anything_runs() -> None:
    module = nn.Sequential(nn.Linear(32, 8, device="meta"))
    with pytest.raises(nnr_codec.InvalidModel):
        nnr_codec.encode(module, calibration=vectors())
