from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import linregress, spearmanr

from python_udfs.training.decay import (
    Point,
    delayed_ics,
    fit_half_life,
    frontier,
    frontier_chart,
)

S = 1_000_000


def fading(seed: int, half_life_s: float, n: int = 20_000) -> tuple[np.ndarray, ...]:
    """Two instruments, a decision each second; a score whose memory halves and a return that follows it."""
    rng = np.random.default_rng(seed)
    keep = 2 ** (-1 / half_life_s)
    as_of = np.arange(n) // 2 * S
    state = rng.normal(size=n)
    for i in range(2, n):
        state[i] = keep * state[i - 2] + np.sqrt(1 - keep**2) * state[i]
    return state, as_of, 0.4 * state + rng.normal(size=n), np.arange(n) % 2


def test_delayed_scores_by_hand() -> None:
    score = np.array([1.0, 10.0, 2.0, 20.0, 5.0, np.nan])
    as_of = np.array([0, 0, 3, 4, 5, 9]) * S
    instrument = np.array([0, 1, 0, 1, 0, 0])
    returns = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    own, late = delayed_ics(score, as_of, returns, instrument, [0, 3])
    assert (own.rows, own.delay_s) == (5, 0)
    assert own.ic == pytest.approx(spearmanr(score[:5], returns[:5]).statistic)
    # 3 s takes 0 s, 4 s of the other takes its 0 s, 5 s takes 0 s and 9 s takes 5 s
    assert (late.rows, late.delay_s) == (4, pytest.approx((3 + 4 + 5 + 4) / 4))
    assert late.ic == pytest.approx(spearmanr([1, 10, 1, 5], [3, 4, 5, 6]).statistic)
    (fresh,) = delayed_ics(score, as_of, returns, instrument, [3], max_late_s=1)
    assert (fresh.rows, fresh.delay_s) == (3, pytest.approx((3 + 4 + 4) / 3))


def test_a_delay_beyond_the_data_has_no_ic() -> None:
    (none,) = delayed_ics(np.arange(3.0), np.arange(3) * S, np.arange(3.0), np.zeros(3), [99])
    assert (none.rows, none.ic, none.delay_s) == (0, None, None)


def test_a_planted_half_life_is_found() -> None:
    delays = [0, 1, 2, 4, 8, 16, 32]
    found = delayed_ics(*fading(1, 6.0), delays)
    life = fit_half_life(np.array(delays, dtype=float), np.array([f.ic for f in found], dtype=float))
    assert life is not None
    assert life.half_life_s == pytest.approx(6, rel=0.2)
    assert life.ic_0 == pytest.approx(found[0].ic, abs=0.02)
    assert life.r2 > 0.97
    assert life.ic(life.half_life_s) == pytest.approx(life.ic_0 / 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_exact_decay_is_fitted_exactly_like_a_line_through_logarithms(sign: int) -> None:
    delay = np.array([0.0, 0.5, 2, 7, 30])
    ic = sign * 0.08 * 2 ** (-delay / 4.5)
    life = fit_half_life(delay, ic)
    line = linregress(delay, np.log2(np.abs(ic)))
    assert life is not None
    assert life.half_life_s == pytest.approx(-1 / line.slope, rel=1e-4)
    assert (life.ic_0, life.r2) == (pytest.approx(sign * 0.08), pytest.approx(1))
    gap = np.append(ic, np.nan)
    assert fit_half_life(np.append(delay, 60), gap) == life


@pytest.mark.parametrize(
    "ic",
    [
        [0.05] * 5,  # never fades
        [0.01, 0.02, 0.03, 0.04, 0.05],  # grows
        [0.02, -0.03, 0.03, -0.02, 0.01],  # noise
        [0.05, 0.0, 0.0, 0.0, 0.0],  # gone before the second delay: no one knows when
        [0.05, np.nan, np.nan, np.nan, 0.01],
        [np.nan] * 5,
    ],
)
def test_what_does_not_decay_has_no_half_life(ic: list[float]) -> None:
    assert fit_half_life(np.array([0.0, 1, 2, 4, 8]), np.array(ic)) is None


def test_latency_is_priced_in() -> None:
    assert Point("a", 3.0, 0.08, 3.0).priced_ic == pytest.approx(0.04)
    assert Point("a", 3.0, 0.08).priced_ic == 0.08


POINTS = [
    Point("logistic", 0.005, 0.04, 10),
    Point("worse and slower", 0.01, 0.03, 10),
    Point("student", 0.02, 0.07, 10),
    Point("same as the student", 0.02, 0.07, 10),
    Point("teacher <slow>", 8.0, 0.09, 10),
]


def test_the_frontier_holds_what_no_other_beats() -> None:
    assert [p.name for p in frontier(POINTS)] == ["logistic", "student"], "decay eats the teacher's lead"
    without = [Point(p.name, p.latency_s, p.ic) for p in POINTS]
    assert [p.name for p in frontier(without)] == ["logistic", "student", "teacher <slow>"]
    assert frontier([]) == []


def test_the_picture_shows_every_model_where_it_stands() -> None:
    drawn = ElementTree.fromstring(str(frontier_chart(POINTS)))
    assert drawn.attrib["aria-label"].endswith("Not beaten: logistic, student")
    dots = {r.find("title").text.split(":")[0]: r for r in drawn.iter("rect")}  # type: ignore[union-attr]
    assert set(dots) == {p.name for p in POINTS}
    x, y = ({k: float(r.attrib[a]) for k, r in dots.items()} for a in "xy")
    assert x["logistic"] < x["worse and slower"] < x["student"] < x["teacher <slow>"]
    assert y["student"] < y["teacher <slow>"] < y["logistic"] < y["worse and slower"], "up is better"
    assert [k for k, r in dots.items() if r.attrib["class"] == "solid own"] == ["logistic", "student"]


def test_one_model_alone_and_none() -> None:
    assert "alone" in frontier_chart([Point("alone", 0.01, 0.0)])
    for points in ([], [Point("a", 0.0, 0.1)]):
        with pytest.raises(ValueError, match="latency above 0"):
            frontier_chart(points)
