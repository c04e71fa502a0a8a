"""Digests of weights that are made of factors do not depend on the linear algebra of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnr_codec
from nnr_codec.factorization.forms import FORMS, FactoredWeight

SHAPE = (70, 60, 3, 3)
RANKS = {"lr": 37, "cp": 301, "tucker2": 33, "ht2": 35, "joint_binary": 41}

DIGEST = """
import sys, nnr_codec
from nnr_codec._core import allow_fast_paths
from nnr_codec.support.digest import digest
allow_fast_paths(sys.argv[2] == "fast")
tensors = nnr_codec.decode(sys.argv[1])
print(digest(tensors.items()))
print(*(digest([tensor]) for tensor in tensors.items()))
"""


SUMS = {
    **{"lr": [(0, 1), (1, 0)], "cp": [(0, 1), (1, 1), (2, 1), (3, 1)]},
    **{"tucker2": [(2, 1), (0, 1)], "ht2": [(1, 2), (2, 0)]},
}
"""The factors and axes that the last sum of a form goes over; of the joint forms as of lr."""


def weights() -> dict[str, FactoredWeight]:
    """A weight of each form, with terms that cancel, so that how sums are rounded shows."""
    rng = np.random.default_rng(0)
    made = {}
    for form, kind in FORMS.items():
        ranks = [min(RANKS.get(form, 39), most) for most in kind.max_ranks(SHAPE)]
        factors = [rng.normal(size=s).astype(np.float32) for s in kind.factor_shapes(SHAPE, ranks)]
        (first, axis), *others = SUMS.get(form, SUMS["lr"])
        terms = np.moveaxis(factors[first], axis, 0)
        end = terms.shape[0] // 4 * 4
        terms[:end:4] *= 1e9
        terms[2:end:4] = -terms[:end:4]
        for factor, axis in others:
            terms = np.moveaxis(factors[factor], axis, 0)
            terms[2:end:4] = terms[:end:4]
        made[form] = kind(SHAPE, tuple(factors))
    return made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    factored = weights()
    dense = {name: weight.to_dense() for name, weight in factored.items()}
    path = tmp_path_factory.mktemp("digests") / "factors.nnr"
    options = nnr_codec.EncodeOptions(lossless=True)
    nnr_codec.encode(dense, path, options, factorizations=factored)
    return path


def test_digests_are_the_same_with_every_blas(stream: Path) -> None:
    """One thread or two, kernels of other processors, and of the core the plain path as well."""
    digests = set()
    cores = [(1, "Haswell"), (2, "Nehalem"), (2, "SkylakeX"), (1, "Prescott")]
    for (threads, core), path in zip(cores, ["fast", "fast", "fast", "plain"], strict=True):
        environment = {"OPENBLAS_NUM_THREADS": str(threads), "OPENBLAS_CORETYPE": core}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, str(stream), path],
            env={**os.environ, **environment},
            cwd=stream.parent,  # beside the sources Python would take those, which lack the core
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1, digests


def test_orders_are_those_of_the_specification() -> None:
    """Written out for single elements, in Python's own floats."""
    made = weights()
    rng = np.random.default_rng(1)
    dense = {name: weight.to_dense() for name, weight in made.items()}
    for _ in range(20):
        t, s, i, j = (int(rng.integers(size)) for size in SHAPE)
        for form, weight in made.items():
            factors = [factor.astype(np.float64).tolist() for factor in weight.factors]
            expected = np.float32(ELEMENTS[form](factors, t, s, i, j))
            assert dense[form][t, s, i, j] == expected, form


def summed(terms: list[float]) -> float:
    total = 0.0
    for term in terms:
        total += term
    return total


def lr(f: list, t: int, s: int, i: int, j: int) -> float:
    column = (s * SHAPE[2] + i) * SHAPE[3] + j
    return summed([g * row[column] for g, row in zip(f[0][t], f[1], strict=True)])


def cp(f: list, t: int, s: int, i: int, j: int) -> float:
    rows = zip(f[0][t], f[1][s], f[2][i], f[3][j], strict=True)
    return summed([a * (b * c * e) for a, b, c, e in rows])


def tucker2(f: list, t: int, s: int, i: int, j: int) -> float:
    core, u, v = f
    partial = [
        summed([u[t][a] * core[a][b][i][j] for a in range(len(core))]) for b in range(len(core[0]))
    ]
    return summed([x * y for x, y in zip(v[s], partial, strict=True)])


def ht2(f: list, t: int, s: int, i: int, j: int) -> float:
    u, left, right, v = f
    first = [summed([u[s][a] * left[a][i][b] for a in range(len(left))]) for b in range(len(right))]
    last = [summed([v[t][c] * right[b][c][j] for c in range(len(v[t]))]) for b in range(len(right))]
    return summed([x * y for x, y in zip(first, last, strict=True)])


def joint(f: list, t: int, s: int, i: int, j: int) -> float:
    row, column = i * SHAPE[1] + s, j * SHAPE[0] + t
    products = [
        summed([x * line[column] for x, line in zip(u[row], v, strict=True)])
        for u, v in zip(f[::2], f[1::2], strict=True)
    ]
    return summed(products)


ELEMENTS = {
    **{"lr": lr, "cp": cp, "tucker2": tucker2, "ht2": ht2},
    **dict.fromkeys(("joint_right", "joint_left", "joint_binary"), joint),
}
