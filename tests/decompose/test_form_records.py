"""What decomposition and layers know of each form, found by the form's word."""

from __future__ import annotations

from typing import get_args

import pytest
from decompose_support import ONE_LAYER, random_kernel

from nnr_codec import InvalidOptions
from nnr_codec.decompose.algorithms.joint import JOINT_FITTINGS
from nnr_codec.decompose.forms import fitting_of, form_of_method, forms_of_layer
from nnr_codec.decompose.layer_kinds import Kind, LayerWeight
from nnr_codec.factorization.forms import CP, FORMS, HT2, FactoredWeight, LowRank, Tucker2
from nnr_codec.model import Parameter
from nnr_codec.options.decomposition import Method


def weight(kind: Kind, *shape: int, is_first: bool = False) -> LayerWeight:
    parameter = Parameter.from_array("w", random_kernel(shape))
    return LayerWeight(parameter, kind, is_first=is_first)


def test_every_form_has_a_record() -> None:
    of_groups = {fitting.form for fitting in JOINT_FITTINGS.values()}
    assert of_groups | set(ONE_LAYER) == set(FORMS.values())
    for form in of_groups:
        with pytest.raises(InvalidOptions, match=rf"'a': {form.form} has ranks of groups"):
            fitting_of(form, "a")


@pytest.mark.parametrize("form", ONE_LAYER)
def test_records_are_of_their_forms(form: type[FactoredWeight]) -> None:
    fitting, kernel = fitting_of(form), random_kernel((6, 5, 3, 3)).astype("f8")
    ranks, errors = fitting.errors(kernel)
    assert ranks.shape == (len(errors), len(form.max_ranks(kernel.shape)))
    assert len(fitting.spectra(kernel)) == ranks.shape[1]
    assert type(fitting.fit(kernel, [2] * ranks.shape[1], None, "a")) is form


def test_layers_get_the_forms_that_they_can_run_on() -> None:
    assert forms_of_layer(weight("convolution", 4, 3, 3, 3)) == (LowRank, Tucker2, CP, HT2)
    assert forms_of_layer(weight("convolution", 4, 3, 3)) == (LowRank, Tucker2, CP)
    assert forms_of_layer(weight("grouped", 4, 3, 3, 3)) == (LowRank,)


def test_methods_give_low_rank_where_their_form_is_not_meant() -> None:
    kernel = weight("convolution", 4, 3, 3, 3)
    assert {form.form for form in ONE_LAYER} < set(get_args(Method))
    methods = {"lr": LowRank, "cp": CP, "tucker2": Tucker2, "ht2": HT2, "ce1": CP}
    assert {method: form_of_method(kernel, method) for method in methods} == methods
    for other in (weight("linear", 4, 3), weight("transposed", 4, 3, 3, 3)):
        assert {form_of_method(other, method) for method in methods} == {LowRank}
    first = weight("convolution", 4, 3, 3, 3, is_first=True)
    assert form_of_method(first, "cp") is CP


@pytest.mark.parametrize(
    ("kind", "shape", "is_first", "form"),
    [
        ("convolution", (64, 64, 3, 3), False, HT2),
        ("convolution", (64, 64, 1, 7), False, HT2),
        ("convolution", (16, 3, 3, 3), True, LowRank),
        ("convolution", (32, 1, 5, 5), True, LowRank),
        ("convolution", (64, 1, 3, 3), False, LowRank),
        ("convolution", (64, 32, 5), False, LowRank),
        ("pointwise", (64, 64, 1, 1), False, LowRank),
        ("linear", (10, 64), False, LowRank),
    ],
)
def test_which_form_the_published_scheme_gives(
    kind: Kind, shape: tuple[int, ...], is_first: bool, form: type[FactoredWeight]
) -> None:
    assert form_of_method(weight(kind, *shape, is_first=is_first), "ht2") is form
