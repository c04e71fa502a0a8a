"""Loading tensors into a network and running it."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from subject_support import inputs_and_labels, linear_tensors, logits, seven_samples, subject, torch

from nnr_codec.errors import InvalidModel
from nnr_codec.experiments.evaluation import evaluate
from nnr_codec.experiments.measures.metrics import unlabelled_classification
from nnr_codec.model import Model
from nnr_codec.user.module import load_state


def load_tensors(module: torch.nn.Module, tensors: dict[str, np.ndarray]) -> None:
    load_state(module, Model.from_arrays(tensors), strict=True)


def test_reference_run_and_comparison() -> None:
    tensors = linear_tensors()
    reference = evaluate(subject(), tensors)
    expected = logits(tensors)
    np.testing.assert_allclose(reference.outputs, expected, rtol=1e-5)
    right = expected.argmax(axis=1) == inputs_and_labels()[1]
    assert reference.scores["top1"].tolist() == right.tolist()
    assert 0 < right.sum() < len(right)  # else this shows little
    assert not reference.divergence.any()
    assert reference.agreement.all()

    other = {**tensors, "weight": -tensors["weight"]}
    found = evaluate(subject(), other, reference.outputs)
    assert found.outputs is None
    same = logits(other).argmax(axis=1) == expected.argmax(axis=1)
    assert found.agreement.tolist() == same.tolist()
    assert (found.divergence > 0).all()


def test_names_what_does_not_fit() -> None:
    tensors = linear_tensors()
    with pytest.raises(InvalidModel, match="'bias': is missing"):
        evaluate(subject(), {"weight": tensors["weight"]})
    with pytest.raises(InvalidModel, match="'scale': the module has no such"):
        evaluate(subject(), {**tensors, "scale": tensors["bias"]})
    with pytest.raises(
        InvalidModel, match=r"'weight': has the shape \(4, 3\), in the module \(3, 4\)"
    ):
        evaluate(subject(), {**tensors, "weight": tensors["weight"].T})


def test_the_reference_has_to_be_of_the_same_samples() -> None:
    tensors = linear_tensors()
    reference = evaluate(subject(), tensors).outputs
    with pytest.raises(InvalidModel, match=r"'small': outputs are \(1, 3\), .* \(7, 3\)"):
        evaluate(subject().sampled(limit=1), tensors, reference)


def test_counters_of_batch_norm_may_be_absent() -> None:
    module = torch.nn.BatchNorm1d(2)
    tensors = {
        name: np.full(2, value, np.float32)
        for name, value in (("weight", 2), ("bias", 3), ("running_mean", 4), ("running_var", 5))
    }
    load_tensors(module, tensors)
    assert module.weight.tolist() == [2, 2]
    assert module.running_var.tolist() == [5, 5]
    load_tensors(module, {**tensors, "num_batches_tracked": np.array(7)})
    assert int(module.num_batches_tracked) == 7
    with pytest.raises(InvalidModel, match="'num_batches_tracked': is float32"):
        load_tensors(module, {**tensors, "num_batches_tracked": np.array(7, np.float32)})
    del tensors["running_mean"]
    with pytest.raises(InvalidModel, match="'running_mean': is missing"):
        load_tensors(module, tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e5m2", "int8"])
def test_any_type_of_numbers_is_loaded(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    values = np.array([1, -2, 3]).astype(kind)
    module = torch.nn.Linear(4, 3)
    load_tensors(module, {**linear_tensors(), "bias": values})
    assert module.bias.tolist() == [1, -2, 3]


def test_outputs_that_are_not_numbers() -> None:
    tensors = linear_tensors()
    reference = evaluate(subject(), tensors)
    broken = {**tensors, "bias": np.array([0, np.nan, 0], np.float32)}
    found = evaluate(subject(), broken, reference.outputs)
    assert not found.scores["top1"].any()
    assert not found.agreement.any()
    assert np.isposinf(found.divergence).all()
    with pytest.raises(InvalidModel, match=r"uncompressed network.*sample 0 is not finite"):
        evaluate(subject(), broken)


def test_twice_the_same() -> None:
    class Noisy(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs = super().forward(inputs)
            return torch.nn.functional.dropout(outputs + torch.randn(3), 0.5, self.training)

    noisy = subject(lambda: Noisy(4, 3))
    before = torch.get_rng_state()
    first, second = (evaluate(noisy, linear_tensors()).outputs for _ in range(2))
    assert np.array_equal(first, second)
    assert (first != 0).all()  # no dropout
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.allclose(first, logits(linear_tensors()))


def test_several_inputs_and_no_targets() -> None:
    class Sum(torch.nn.Linear):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return super().forward(first + second)

    def batches():
        for inputs, _ in seven_samples():
            yield (inputs, 2 * inputs), None

    made = dataclasses.replace(
        subject(lambda: Sum(4, 3), batches), metric=unlabelled_classification
    )
    tensors = linear_tensors()
    found = evaluate(made, tensors)
    np.testing.assert_allclose(
        found.outputs, 3 * logits(tensors) - 2 * tensors["bias"], rtol=1e-5, atol=1e-6
    )
    assert found.scores["agreement"].all()


def test_a_module_that_fails_names_its_subject() -> None:
    def wrong():
        yield torch.zeros(2, 5), torch.zeros(2)

    with pytest.raises(InvalidModel, match=r"'small': RuntimeError: .*shapes") as caught:
        evaluate(subject(batches=wrong), linear_tensors())
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(InvalidModel, match="'small': has no samples"):
        evaluate(subject(batches=lambda: []), linear_tensors())

    class Pair(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return inputs, inputs

    class Mean(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs).mean(0)

    with pytest.raises(InvalidModel, match=r"'small': its module returns \(3,\) for 2 samples"):
        evaluate(subject(lambda: Mean(4, 3)).sampled(limit=2), linear_tensors())
    with pytest.raises(InvalidModel, match="'small': its module returns a tuple"):
        evaluate(subject(lambda: Pair(4, 3)), linear_tensors())
