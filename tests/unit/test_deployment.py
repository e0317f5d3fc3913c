from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_udfs.scorer.deployment import SHARES, served_by
from python_udfs.settings import REPOSITORY

NAMES = st.text(min_size=1, max_size=30)
INSTRUMENTS = [f"binance:spot:S{i}" for i in range(20_000)]
KNOWN = [[], [8, 34, 37, 46], [8, 10, 13, 16, 27, 34, 36, 37, 38, 46, 47, 54, 57, 59]]


@given(NAMES, NAMES, st.integers(0, 100), st.integers(0, 100))
def test_what_is_served_at_a_share_is_served_at_a_larger_one(
    instrument: str, model: str, a: int, b: int
) -> None:
    low, high = sorted((a, b))
    assert served_by(instrument, model, low) <= served_by(instrument, model, high)


@given(NAMES, NAMES)
def test_at_0_none_and_at_100_all(instrument: str, model: str) -> None:
    assert not served_by(instrument, model, 0)
    assert served_by(instrument, model, 100)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("model", ["student:0123456789ab", "student:ba9876543210"])
def test_the_share_is_kept(model: str, share: int) -> None:
    served = sum(served_by(i, model, share) for i in INSTRUMENTS)
    n, p = len(INSTRUMENTS), share / 100
    # five standard deviations of a binomial
    assert abs(served - n * p) <= 5 * (n * p * (1 - p)) ** 0.5


def test_challengers_draw_independently() -> None:
    one, two = ({i for i in INSTRUMENTS if served_by(i, model, 20)} for model in ("m:1", "m:2"))
    # expected: 4 % of 20,000, with a standard deviation of 28
    assert abs(len(one & two) - 800) < 140


def test_known_answers() -> None:
    """Drawn once: another hash would move instruments from model to model in the middle of a roll-out."""
    served = [
        [i for i in INSTRUMENTS[:60] if served_by(i, "student:0123456789ab", share)] for share in (1, 5, 20)
    ]
    assert [[int(i.rpartition("S")[2]) for i in found] for found in served] == KNOWN


def test_another_process_says_the_same() -> None:
    code = (
        "from python_udfs.scorer.deployment import served_by\n"
        "print([i for i in range(500) if served_by(f'binance:spot:S{i}', 'm:1', 20)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.stdout.strip() == str([i for i in range(500) if served_by(INSTRUMENTS[i], "m:1", 20)])
