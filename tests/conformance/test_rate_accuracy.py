"""Rate and accuracy stay where they are pinned: on our digits networks, and on real ones.

Bytes of plain quantization are exact: they are the same for any number of threads and on any
processor. Those of the rate search may move by a little. The right answers may differ by the few
samples that lie so near to a border that another version of torch, which sums in another order,
decides otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("zstandard")
pytest.importorskip("constriction")

import rate_accuracy
from rate_accuracy import DIGITS_NETWORKS, POINTS, REAL_NETWORKS, REAL_STRIDE, Outcome, measure

pytestmark = pytest.mark.conformance

PINS = rate_accuracy.load_pins()
PLAIN = ("uniform", "dependent", "best")
RDO_BYTES = 0.005  # of the bytes
DIGITS_ANSWERS = 1  # of 599
REAL_ANSWERS = 2  # of 500


@pytest.fixture(scope="session")
def data() -> Path:
    """Real trained networks and their data, which are not part of the project."""
    default = Path(__file__).parents[2] / ".." / "shared"
    folder = Path(os.environ.get("NNR_SHARED") or default) / "data"
    if not (folder / "datasets" / "cifar10_test.npz").is_file():
        pytest.skip("NNR_SHARED names no folder with data/datasets")
    return folder.resolve()


def check(point: str | None, found: Outcome, pinned: Outcome, answers: int) -> None:
    """Compare an outcome with its pin."""
    assert found.samples == pinned.samples
    assert abs(found.correct - pinned.correct) <= answers
    bytes_allowed = RDO_BYTES * pinned.bytes if point is not None and point not in PLAIN else 0
    assert abs(found.bytes - pinned.bytes) <= bytes_allowed


@pytest.mark.parametrize("point", [None, *POINTS])
@pytest.mark.parametrize("network", DIGITS_NETWORKS)
def test_digits(network: str, point: str | None) -> None:
    found = measure(rate_accuracy.source_of(network), point)
    check(point, found, PINS[network][point or "uncompressed"], DIGITS_ANSWERS)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("network", REAL_NETWORKS)
def test_real_networks(network: str, point: str, data: Path) -> None:
    found = measure(rate_accuracy.source_of(network), point, data, REAL_STRIDE)
    check(point, found, PINS[network][point], REAL_ANSWERS)


def test_pins_are_of_use() -> None:
    """What is pinned is smaller than the whole and nearly as good, and there is all of it."""
    assert PINS.keys() == {*DIGITS_NETWORKS, *REAL_NETWORKS}
    for points in PINS.values():
        assert points.keys() == {"uncompressed", *POINTS}
        whole = points["uncompressed"]
        for point in POINTS:
            assert points[point].bytes < 0.25 * whole.bytes
            assert points[point].correct > 0.9 * whole.correct


@pytest.mark.parametrize(
    ("point", "found"),
    [
        ("uniform", Outcome(1001, 500, 599)),
        ("dependent", Outcome(999, 500, 599)),
        ("dependent, RDO", Outcome(1006, 500, 599)),
        ("uniform", Outcome(1000, 502, 599)),
        ("uniform", Outcome(1000, 498, 599)),
        ("uniform", Outcome(1000, 500, 598)),
    ],
)
def test_what_differs_is_seen(point: str, found: Outcome) -> None:
    pinned = Outcome(1000, 500, 599)
    check(point, pinned, pinned, DIGITS_ANSWERS)
    with pytest.raises(AssertionError):
        check(point, found, pinned, DIGITS_ANSWERS)
