from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_udfs.errors import UserError
from python_udfs.training.gate import Candidate, decide

OLD = Candidate(quality=0.05, latency_ms=5, parameters=100, coverage=0.9)
NEW = Candidate(quality=0.07, latency_ms=15, parameters=10_000, coverage=0.8)


def test_each_term_by_hand() -> None:
    verdict = decide(NEW, OLD, latency_budget_ms=50)
    assert verdict.gain == pytest.approx(0.4)
    assert verdict.latency_cost == pytest.approx(10 / 50)
    assert verdict.complexity_cost == pytest.approx(2 / 6)
    assert verdict.interpretability_loss == pytest.approx(0.1)
    assert verdict.score == pytest.approx(0.4 - 0.5 * 0.2 - 0.3 / 3 - 0.2 * 0.1)
    assert verdict.adopt
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quality": 0.06}, "score -0.020 is not above 0.15"),
        ({"latency_ms": 51.0, "quality": 1.0}, "latency 51 ms is not under the budget of 50 ms"),
        ({"coverage": 0.59, "quality": 1.0}, "explanations cover 59.0% of attribution, below 60%"),
        ({"quality": None}, "the quality of one of the two is unknown"),
        ({"quality": float("nan")}, "the quality of one of the two is unknown"),
        ({"latency_ms": None}, "the latency of one of the two is unknown"),
        ({"coverage": None}, "the coverage of one of the two is unknown"),
    ],
)
def test_one_reason_is_enough_to_refuse(change: dict[str, float | None], reason: str) -> None:
    verdict = decide(replace(NEW, **change), OLD, latency_budget_ms=50)
    assert not verdict.adopt
    assert verdict.reasons == (reason,)


def test_all_reasons_are_given_at_once() -> None:
    verdict = decide(Candidate(0.04, 80, 10**9, 0.1), OLD, latency_budget_ms=50)
    assert len(verdict.reasons) == 3
    assert (verdict.latency_cost, verdict.complexity_cost) == (1.0, 1.0), "costs end at 1"


def test_the_thresholds_themselves() -> None:
    same = replace(OLD, coverage=0.6, latency_ms=50.0)
    old = replace(same, quality=1.0)
    assert not decide(replace(same, quality=1.15 - 1e-12), old, latency_budget_ms=51).adopt
    above = replace(same, quality=1.15 + 1e-9)
    assert decide(above, old, latency_budget_ms=50.001).adopt, "60 % itself is enough"
    assert not decide(above, old, latency_budget_ms=50).adopt, "under the budget, not on it"


def test_a_baseline_near_zero_or_below_does_not_make_the_gain_infinite() -> None:
    assert decide(NEW, replace(OLD, quality=0.0), latency_budget_ms=50).gain == pytest.approx(7)
    assert decide(replace(NEW, quality=-0.02), replace(OLD, quality=-0.04), latency_budget_ms=50).gain == (
        pytest.approx(0.5)
    )


def test_being_faster_smaller_and_clearer_buys_no_quality() -> None:
    verdict = decide(Candidate(0.05, 1, 1, 1.0), OLD, latency_budget_ms=50)
    assert verdict.score == 0
    assert not verdict.adopt


@given(
    quality=st.floats(-1, 1),
    latency=st.floats(0, 200),
    parameters=st.integers(0, 10**9),
    coverage=st.floats(0, 1),
    more=st.floats(0, 1),
)
def test_the_score_never_rises_with_a_cost(
    quality: float, latency: float, parameters: int, coverage: float, more: float
) -> None:
    model = Candidate(quality, latency, parameters, coverage)
    base = decide(model, OLD, latency_budget_ms=50)
    assert base.score is not None
    for worse in (
        replace(model, latency_ms=latency + 50 * more),
        replace(model, parameters=round(parameters * (1 + more))),
        replace(model, coverage=coverage * (1 - more)),
        replace(model, quality=quality - more),
    ):
        verdict = decide(worse, OLD, latency_budget_ms=50)
        assert verdict.score is not None
        assert verdict.score <= base.score
        assert verdict.adopt <= base.adopt


@pytest.mark.parametrize(
    ("change", "budget"), [({"coverage": 1.2}, 50), ({"parameters": -1}, 50), ({}, 0), ({}, float("nan"))]
)
def test_what_cannot_be(change: dict[str, float], budget: float) -> None:
    with pytest.raises(UserError):
        decide(replace(NEW, **change), OLD, latency_budget_ms=budget)
