from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from python_udfs.cli import app
from python_udfs.errors import UserError
from python_udfs.jobs.bench import environment
from python_udfs.jobs.bench.assembly import (
    KNOWN_LAG_MS,
    MAX_LAG_MS,
    Measured,
    Question,
    aims,
    as_of_sql,
    peer,
)
from python_udfs.jobs.bench.figures import Aim, first_difference, percentiles, ratio, timed, times
from python_udfs.jobs.bench.score import Feed, contract
from python_udfs.scorer.card import KEYS
from python_udfs.settings import REPOSITORY

NAMES = ["row", "a"]


def test_percentiles_are_linear_between_neighbours() -> None:
    assert percentiles(np.arange(101.0)) == (50.0, 99.0)
    assert percentiles([3.0, 1.0]) == pytest.approx((2.0, 2.98))
    assert percentiles([7.0]) == (7.0, 7.0)
    assert all(math.isnan(x) for x in percentiles([]))


def test_timed_counts_the_calls_after_the_warm_up_and_prepares_each() -> None:
    done: list[str] = []
    ms = timed(lambda: done.append("call"), 3, before=lambda: done.append("before"), warm_up=2)
    assert done == ["before", "call"] * 5
    assert ms.shape == (3,) and (ms >= 0).all()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (6, 3, 2),
        (0, 3, 0),
        (None, 3, None),
        (6, None, None),
        (6, 0, None),
        (math.nan, 3, None),
        (6, math.nan, None),
    ],
)
def test_ratio(a: float | None, b: float | None, expected: float | None) -> None:
    assert ratio(a, b) == expected


def test_ratios_as_text() -> None:
    assert [times(x) for x in (None, 0.254, 1.26, 12.4, 1234)] == ["-", "0.25x", "1.3x", "12x", "1,234x"]


def test_equal_results_have_no_difference_whatever_is_missing() -> None:
    a = np.array([[0, 1.5], [1, math.nan]])
    assert first_difference(a, a.copy(), NAMES) == ""
    assert first_difference(np.empty((0, 2)), np.empty((0, 2)), NAMES) == ""


@pytest.mark.parametrize("wrong", [0.5000000000000001, math.nan, -0.5])
def test_a_difference_names_row_and_column(wrong: float) -> None:
    a = np.array([[0, 1.0], [1, 0.5]])
    b = a.copy()
    b[1, 1] = wrong
    assert first_difference(a, b, NAMES).startswith("1 of 2 rows differ, first row 1 in a: ")
    assert first_difference(b, a, NAMES)


def test_a_lost_row_is_a_difference() -> None:
    a = np.zeros((3, 2))
    assert first_difference(a, a[:2], NAMES) == "2 rows of 2 columns instead of 3 rows of 2 columns"


@pytest.mark.parametrize(
    ("measured", "at_least", "met", "text"),
    [
        (5, True, True, "a: at least 5 x, measured 5 x: met"),
        (4.9, True, False, "a: at least 5 x, measured 4.9 x: missed"),
        (5, False, True, "a: at most 5 x, measured 5 x: met"),
        (5.1, False, False, "a: at most 5 x, measured 5.1 x: missed"),
        (None, False, None, "a: at most 5 x: not measured"),
        (math.nan, True, None, "a: at least 5 x: not measured"),
    ],
)
def test_aims(measured: float | None, at_least: bool, met: bool | None, text: str) -> None:
    aim = Aim("a", 5, "x", measured, at_least)
    assert aim.met is met
    assert str(aim) == text


def test_assembly_aims_compare_the_same_rows_and_the_same_way() -> None:
    us, feast = Measured("ClickHouse", 10, 90, 80), Measured("feast 1", 10, None, 20)
    large = [Measured("ClickHouse", 99, 60, 50), Measured("duckdb 2", 99, 30, 100)]
    found = [a.measured for a in aims({10: [us, feast], 99: large}, 10, 99)]
    assert found == [4, 2, 0.5]
    assert [a.met for a in aims({99: large[:1]}, 10, 99)] == [None, None, None]


def one() -> Question:
    """One instrument with features at 10 s and 20 s, known a little later; the second has one, known at 5 s."""
    us = 1_000_000
    known = np.array([10, 20, 5]) * us + KNOWN_LAG_MS * 1000
    as_of = [known[0] - 1, known[0], known[1] - 1, known[1], 0, 0]
    limit = known[2] - KNOWN_LAG_MS * 1000 + MAX_LAG_MS * 1000
    as_of[4:] = [limit, limit + 1]
    return Question(
        names=["a"],
        entity_instrument=np.array([0, 0, 0, 0, 1, 1]),
        as_of=np.array(as_of),
        label=np.zeros(6, dtype=np.int8),
        feature_instrument=np.array([0, 0, 1]),
        timestamp=known - KNOWN_LAG_MS * 1000,
        known_at=known,
        features=np.array([[1.0], [2.0], [3.0]]),
    )


def test_the_answer_by_hand() -> None:
    nan = math.nan
    assert first_difference(one().answer()[:, 1:], np.array([[nan, 1, 1, 2, 3, nan]]).T, ["a"]) == ""


def test_a_made_question_has_what_every_peer_needs() -> None:
    q = Question.made(2000, 3, 20)
    for instrument, clock in ((q.entity_instrument, q.as_of), (q.feature_instrument, q.known_at)):
        pairs = list(zip(instrument, clock, strict=True))
        assert pairs == sorted(set(pairs))  # sorted, and once each
    assert len(q.known_at) == 2000 and 1990 <= len(q.as_of) <= 2000
    # none before its instrument's first features and none too old: Feast drops those
    assert not np.isnan(q.answer()).any()
    # ties are asked for
    known = set(zip(q.feature_instrument, q.known_at, strict=True))
    assert sum(x in known for x in zip(q.entity_instrument, q.as_of, strict=True)) >= 190
    same = Question.made(2000, 3, 20)
    assert np.array_equal(q.features, same.features) and np.array_equal(q.as_of, same.as_of)


def test_the_sql_is_what_the_macro_says() -> None:
    sql = as_of_sql(["a", "b"])
    assert sql.count("asof left join") == 1
    assert "l.as_of >= r.known_at" in sql
    assert f"if(r.timestamp >= l.as_of - toIntervalMillisecond({MAX_LAG_MS}), r.b, null) as b," in sql


@pytest.mark.parametrize("name", ["polars", "duckdb"])
@pytest.mark.parametrize("question", [one(), Question.made(500, 2, 5)], ids=["by hand", "made"])
def test_peers_give_the_answer(tmp_path: Path, name: str, question: Question) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is in .venv-bench only")
    question.write(tmp_path)
    found = peer(name, Path(sys.executable), tmp_path, question, question.answer(), runs=1)
    assert found.engine.startswith(name)
    assert found.table and found.numpy


def test_a_wrong_answer_is_not_measured(tmp_path: Path) -> None:
    q = Question.made(100, 1, 2)
    q.write(tmp_path)
    expected = q.answer()
    expected[7, 1] += 1
    with pytest.raises(UserError, match=r"polars-numpy gives another answer.* first row 7 in f00"):
        peer("polars", Path(sys.executable), tmp_path, q, expected, runs=1)


def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"question\.json"):
        environment.run_peer(Path(sys.executable), "polars", str(tmp_path))


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text("duckdb==2.0.0 --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    folder = tmp_path / "venv"
    with pytest.raises(UserError, match=r"(?s)venv could not be made.*duckdb"):
        environment.peers_python(Console(quiet=True), folder, lock)
    assert not (folder / "lock.sha256").exists()


def test_an_environment_of_this_lock_is_used_again(tmp_path: Path) -> None:
    import hashlib

    lock = tmp_path / "x.lock"
    lock.write_text("")
    (tmp_path / "lock.sha256").write_text(hashlib.sha256(b"").hexdigest())
    assert environment.peers_python(Console(quiet=True), tmp_path, lock) == tmp_path / "bin" / "python"


@pytest.mark.parametrize("name", ["feature_vector", "sequence_inputs"])
def test_contracts_are_those_of_the_models(name: str) -> None:
    columns = contract(name, 1)
    assert tuple(c.name for c in columns[:6]) == KEYS
    # feature_vector_v1 takes a part of the columns that version 2 has
    of = yaml.safe_load((REPOSITORY / f"dbt_project/models/serving/{name}.yml").read_text())["models"][0]
    assert len(columns) == {"feature_vector": 41, "sequence_inputs": len(of["columns"])}[name]


class Recorder:
    def __init__(self) -> None:
        self.said: list[str] = []

    def execute(self, query: str) -> None:
        self.said.append(query)


def test_the_feed_goes_on_where_it_was() -> None:
    from datetime import UTC, datetime

    client = Recorder()
    first = datetime(2026, 1, 1, tzinfo=UTC)
    feed = Feed(client, "t", contract("sequence_inputs", 1), 4, first)  # type: ignore[arg-type]
    feed.more(10)
    feed.more()
    assert "toUInt64(0 + intDiv(number, 4))" in client.said[0] and "numbers(40)" in client.said[0]
    assert "toUInt64(10 + intDiv(number, 4))" in client.said[1] and "numbers(4)" in client.said[1]


@pytest.mark.parametrize("sizes", ["1,x", "-1", "1e9"])
def test_a_size_that_is_none_is_refused(sizes: str) -> None:
    found = CliRunner().invoke(app, ["bench", "--millions", sizes])
    assert found.exit_code == 2
