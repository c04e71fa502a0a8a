"""The page of a search for a target."""

from __future__ import annotations

import math

import pytest

from nnr_codec.experiments.report import search_page
from nnr_codec.report import Evaluation, SearchReport

pytest.importorskip("matplotlib")

SEEN = (
    Evaluation(0, 40_000, 1e-4, 0.01),
    Evaluation(12, 20_000, 3e-3, 0.5),
    Evaluation(24, 5_000, 0.2, math.inf),
    Evaluation(25, failure="'w': at qp -13 some values become too large for float16"),
)
DROP = SearchReport("max_drop", 0.6, SEEN, 12, reference=97.25)


def test_all_streams_are_in_the_table_and_what_is_finite_is_drawn() -> None:
    text = search_page.search_page(DROP, 100_000, "<model>")
    assert text.count("<tr>") == 1 + len(SEEN)
    assert text.count('class="mark"') == 2
    assert "&lt;model&gt;: max drop 0.6" in text
    assert "<model>" not in text
    assert "Score of the model itself: 97.25" in text
    assert "qp offset +12: 20.0 kB, drop of the score 0.5" in text
    assert "1.600" in text  # bits of the stream that is kept
    assert "∞" in text
    assert "too large for float16" in text
    assert text.count('class="best"') == 2  # offset and bytes of the kept one
    assert text == search_page.search_page(DROP, 100_000, "<model>")


def test_a_size_is_drawn_against_the_error() -> None:
    seen = tuple(Evaluation(one.qp_offset, one.bytes, one.nmse) for one in SEEN[:3])
    search = SearchReport("target_size", 20_000, seen, 12)
    axes = search_page.search_plot(search).axes[0]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("NMSE", "log")
    drawn = {tuple(map(float, line.get_xydata()[0])) for line in axes.lines if line.get_gid()}
    assert drawn == {(one.bytes, one.nmse) for one in seen}
    text = search_page.search_page(search, 0, "m")
    assert text.count('class="mark"') == 3


@pytest.mark.parametrize("losses", [(0.0, 0.5), (-0.25, 0.5)])
def test_losses_that_have_no_logarithm(losses: tuple[float, float]) -> None:
    seen = tuple(Evaluation(n, 10 - n, 0.1, loss) for n, loss in enumerate(losses))
    axes = search_page.search_plot(SearchReport("max_drop", 0.6, seen, 1)).axes[0]
    assert axes.get_yscale() == "linear"
