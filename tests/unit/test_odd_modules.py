"""Modules that calibration and corrections cannot run as others: they do without, and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import nnr_codec
from nnr_codec import EncodeOptions, EncodeResult
from nnr_codec.errors import NnrWarning

torch = pytest.importorskip("torch")
nn = torch.nn

from torch.backends import mha  # noqa: E402

from nnr_codec.calibration.calibrate import calibrate  # noqa: E402
from nnr_codec.calibration.gradients import OutputGradients  # noqa: E402
from nnr_codec.calibration.outputs import float_output  # noqa: E402
from nnr_codec.training import corrections  # noqa: E402
from nnr_codec.user.module import apply, evaluating, weight_layers  # noqa: E402

QP = -24


def small() -> Any:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def images() -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(16, 3, 16, 16, generator=generator) for _ in range(8)]


class Around(nn.Module):  # type: ignore[misc]
    """Calls a network in another way."""

    def __init__(self, network: Any, call: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.network = network
        self._call = call

    def forward(self, inputs: Any) -> Any:
        return self._call(self.network, inputs)


def encoded(module: Any, batches: Any) -> tuple[EncodeResult, list[str]]:
    """Return the result with calibration, and the warnings; it is hardly larger than without."""
    options = EncodeOptions(qp=QP)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = nnr_codec.encode(module, options=options, calibration=batches)
        plain = nnr_codec.encode(module, options=options)
    assert result.data is not None
    assert plain.data is not None
    assert len(result.data) < 1.06 * len(plain.data)
    found = [str(w.message) for w in caught if issubclass(w.category, NnrWarning)]
    return result, found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_modules_of_torchscript(form: str) -> None:
    module = small()
    script = (
        torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, images()[0])
    )
    result, (note,) = encoded(script, images())
    assert "no linear layers" in note
    assert result.report.correction is None


class Pair(NamedTuple):
    first: Any
    second: Any


class Tokens(nn.Module):  # type: ignore[misc]
    """An encoder of tokens, of which those that are 0 are padding: torch nests such tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 7)

    def forward(self, tokens: Any) -> Any:
        hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)
        return self.head(hidden[:, 0])


def test_nested_tensors() -> None:
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randint(1, 50, (16, 12), generator=generator) for _ in range(8)]
    for batch in batches:
        batch[:8, 6:] = 0
    result, notes = encoded(Tokens().eval(), batches)
    assert not notes
    tensors = {tensor.name: tensor for tensor in result.report.tensors}
    assert tensors["encoder.layers.0.linear1.weight"].feedback == "result"
    assert mha.get_fastpath_enabled()


def test_fused_attention_comes_back_when_all_are_through() -> None:
    first, second = evaluating(small()), evaluating(small())
    with first:
        with second:
            assert not mha.get_fastpath_enabled()
        assert not mha.get_fastpath_enabled()
    assert mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm"])
@pytest.mark.parametrize("place", [nn.utils, nn.utils.parametrizations])
def test_weights_that_are_computed_of_others(place: Any, name: str) -> None:
    module = small()
    getattr(place, name)(module[0])
    assert list(weight_layers(module).values()) == ["3.weight", "7.weight"]
    module(images()[0])
    result, notes = encoded(module.eval(), images())
    assert not notes
    assert result.report.correction is not None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_outputs_without_gradients(context: Any) -> None:
    def call(network: Any, inputs: Any) -> Any:
        with context():
            return network(inputs)

    module = Around(small(), call).eval()
    result, notes = encoded(module, images())
    assert len(notes) == 1
    assert "have no gradients" in notes[0]
    assert result.report.notes == tuple(notes)
    tensors = {tensor.name: tensor for tensor in result.report.tensors}
    assert tensors["network.3.weight"].feedback == "inputs"
    assert result.report.correction is not None


def test_gradients_that_end() -> None:
    calls = 0

    def call(network: Any, inputs: Any) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return network(inputs) if calls < 3 else network(inputs).detach()

    module = Around(small(), call).eval()
    known = calibrate(module, images(), gradients=OutputGradients(module))
    assert "have no gradients" in known.notes[0]
    assert set(known.moments) == set(weight_layers(module).values())
    assert not known.result


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(3, 8, 3),
    ],
    ids=["plain", "same", "reflect", "transposed"],
)
def test_autocast_within(layer: Any) -> None:
    def call(network: Any, inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return network(inputs)

    network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    network.append(nn.Linear(128, 10))
    result, notes = encoded(Around(network, call).eval(), images())
    assert not notes
    feedback = {tensor.name: tensor.feedback for tensor in result.report.tensors}
    assert feedback["network.0.weight"] == feedback["network.4.weight"] == "result"


def test_losses_are_no_outputs() -> None:
    outputs = torch.ones(4, 3)
    assert float_output((torch.tensor(0.5), outputs)) is outputs
    assert float_output({"loss": torch.tensor(0.5)}).tolist() == [0.5]
    result, _ = encoded(Around(small(), lambda network, x: network(x).mean()).eval(), images())
    assert result.report.calibrated == "128 samples, outputs: values"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_two_bytes_are_moved(dtype: Any) -> None:
    batches = [batch.to(dtype) for batch in images()]
    result, _ = encoded(small().to(dtype), batches)
    assert result.report.correction is not None
    assert result.report.correction.weights
    assert result.report.correction.after < result.report.correction.before


def test_clustered_weights_of_two_bytes_stay() -> None:
    module = small().half()
    with torch.no_grad():
        for layer in weight_layers(module):
            layer.weight.copy_((layer.weight * 256).round() / 256)
    result, _ = encoded(module, [batch.half() for batch in images()])
    assert result.report.correction is None or not result.report.correction.weights


def test_modules_that_work_in_place_leave_batches_alone() -> None:
    batches = images()
    encoded(Around(small(), lambda network, x: network(x.sub_(0.5))).eval(), batches)
    assert all(torch.equal(a, b) for a, b in zip(batches, images(), strict=True))
    nested = {"inputs": [(torch.ones(2),)]}
    apply(Around(small(), lambda network, x: x[0][0].zero_()), nested)
    assert nested["inputs"][0][0].tolist() == [1, 1]


def test_containers_of_other_types_stay_what_they_are() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2)])
    for given in (Pair(torch.ones(1), torch.ones(1)), packed):
        assert apply(Around(small(), lambda network, x: x), {"inputs": given}) is given


def test_modules_that_take_one_number_of_samples_alone() -> None:
    def call(network: Any, inputs: Any) -> Any:
        return network(inputs.view(16, 3, 16, 16))

    result, notes = encoded(Around(small(), call).eval(), images()[:2])
    assert result.report.correction is None
    assert any(note.startswith("the network is not corrected") for note in notes)


def test_errors_of_the_machine_are_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **others: Any) -> Any:
        raise OSError(28, "no space left")

    monkeypatch.setattr(corrections, "moved_weights", fails)
    with pytest.raises(OSError, match="no space"):
        nnr_codec.encode(small(), options=EncodeOptions(qp=QP), calibration=images())


def test_what_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **others: Any) -> Any:
        raise RuntimeError("not so\nfar")

    monkeypatch.setattr(corrections, "moved_weights", fails)
    monkeypatch.setattr(corrections, "match_channels", fails)
    monkeypatch.setattr(corrections, "distill", fails)
    options = EncodeOptions(qp=QP, tune=True)
    with pytest.warns(NnrWarning) as caught:
        result = nnr_codec.encode(small(), options=options, calibration=images())
    assert sorted(str(warning.message) for warning in caught) == [
        "statistics of channels are not corrected: RuntimeError: not so",
        "vectors are not tuned: RuntimeError: not so",
        "weights are not moved by what is quantized before them: RuntimeError: not so",
    ]
    assert result.report.correction is None
