"""Hypothesis strategies for models, and for the options of our encoder and the reference's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from nnr_codec import EncodeOptions

Arrays = dict[str, npt.NDArray[Any]]

MAX_ELEMENTS = 3000

# No control characters: the reference's own; no "_G" and "_H": it takes them for factors.
names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x17F, blacklist_categories=("Cc", "Cs")),
    min_size=1,
    max_size=24,
).filter(lambda name: "_G" not in name and "_H" not in name)


@st.composite
def shapes(draw: st.DrawFn, max_elements: int = MAX_ELEMENTS) -> tuple[int, ...]:
    """1 to 4 dimensions; some of 1, some long."""
    count = draw(st.integers(1, 4))
    shape: list[int] = []
    for _ in range(count):
        left = max_elements // max(1, math.prod(shape))
        largest = max(1, min(left, {1: 400, 2: 90, 3: 20, 4: 12}[count]))
        shape.append(draw(st.one_of(st.just(1), st.integers(1, largest))))
    return tuple(shape)


def sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Laplacian values of scale 1, a random part of them and of the rows zero."""
    values = rng.laplace(0.0, 1.0, shape)
    values[rng.random(shape) < rng.choice([0.0, 0.3, 0.9])] = 0.0
    values[rng.random(shape[0]) < rng.choice([0.0, 0.4])] = 0.0
    return values


@st.composite
def float_tensors(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    """A tensor of weights around a random magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.01, 0.1, 1.0]))
    return (sparse(rng, draw(shapes())) * scale).astype(np.float32)


@st.composite
def int_tensors(draw: st.DrawFn, dtypes: tuple[str, ...] = ("int32",)) -> npt.NDArray[Any]:
    """Integers of any size that their type and 32 bits hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    info = np.iinfo(dtype)
    low, high = max(info.min, -(2**31)), min(info.max, 2**31 - 1)
    reach = draw(st.sampled_from([1, 20, 5000, 2**31]))
    shape = draw(shapes(400))
    return rng.integers(max(low, -reach), min(high, reach), shape, endpoint=True).astype(dtype)


def models(integers: tuple[str, ...] = ("int32",)) -> st.SearchStrategy[Arrays]:
    """One to four tensors."""
    tensors = st.one_of(float_tensors(), float_tensors(), int_tensors(integers))
    return st.dictionaries(names, tensors, min_size=1, max_size=4)


@st.composite
def step_choices(draw: st.DrawFn) -> dict[str, int]:
    """qp_density and quantization parameters whose steps suit weights of 0.01 to 1."""
    density = draw(st.integers(0, 7))
    exponents = st.floats(-12.0, 0.0)
    return {
        "qp_density": density,
        "qp": round(draw(exponents) * 2**density),
        "nonweight_qp": round(draw(exponents) * 2**density),
    }


@st.composite
def encode_options(draw: st.DrawFn) -> EncodeOptions:
    """Options of our encoder with every tool."""
    profile = draw(st.sampled_from([0, 1]))
    return EncodeOptions(
        **draw(step_choices()),
        profile=profile,
        dq=draw(st.booleans()),
        lambda_scale=draw(st.sampled_from([0.0, 1.0])),
        unary_length=draw(st.one_of(st.integers(1, 16), st.integers(1, 256))),
        scan_order=draw(st.integers(0, 4)),
        search_initialization=draw(st.booleans()),
        row_skipping=profile == 1 and draw(st.booleans()),
        codebook=draw(st.booleans()),
    )


@st.composite
def peer_options(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments of the reference's ``compress``.

    No scan order: its encoder fails on it for tensors of one row or column.
    """
    return {
        **draw(step_choices()),
        "use_dq": draw(st.booleans()),
        "lambda_scale": draw(st.sampled_from([0, 1.0])),
        "param_opt": draw(st.booleans()),
        "cabac_unary_length_minus1": draw(st.one_of(st.integers(0, 15), st.integers(0, 255))),
        "row_skipping": draw(st.booleans()),
        "codebook_mode": draw(st.sampled_from([0, 0, 1, 2])),
    }
