"""How each form is fitted to a weight: one module a form, called as the form's word."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ...errors import InvalidOptions
from ...factorization.forms import FORMS, FactoredWeight
from ..layer_kinds import LayerWeight
from .fitting import Fitting

_FORMS_OF_METHODS = {"ce1": "cp"}
"""Words of the forms of methods that are not called by them."""


def fitting_of(form: type[FactoredWeight], name: str = "weight") -> Fitting:
    """Return the record `FITTING` of the form's module, which is imported when it is needed.

    Raises:
        InvalidOptions: the form is joint; `name`, the weight's, is for the message.
    """
    if form.shared:
        reason = f"{name!r}: {form.form} has ranks of groups, not of a layer"
        raise InvalidOptions("decompose", reason)
    return cast("Fitting", import_module(f".{form.form}", __name__).FITTING)


def forms_of_layer(weight: LayerWeight) -> tuple[type[FactoredWeight], ...]:
    """Return the forms that a layer can run on."""
    alone = (form for form in FORMS.values() if not form.shared)
    return tuple(form for form in alone if fitting_of(form).suits(weight))


def form_of_method(weight: LayerWeight, method: str) -> type[FactoredWeight]:
    """Return the form that a method gives a weight: low rank where its form is not meant for it."""
    form = FORMS[_FORMS_OF_METHODS.get(method, method)]
    fitting = fitting_of(form)
    assigned = fitting.assigned or fitting.suits
    return form if assigned(weight) else FORMS["lr"]


def has_first_layer(method: str) -> bool:
    """Whether a method's published scheme, by one energy, has a rule for first layers."""
    return method in FORMS and fitting_of(FORMS[method]).has_first_layer
