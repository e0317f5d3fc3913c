"""States of instruments: worse at once, better after ten complete buckets with parity; and a scorer that obeys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from python_udfs.scorer.scorer import Instrument, Scorer
from python_udfs.settings import Settings
from tests.health import SECOND, create_relations, insert, key
from tests.integration.test_serving import Shelf, State
from tests.scoring import bucket, create, follow_flow, make_model, written
from tests.scoring import insert as insert_buckets
from tests.support import dbt, execute, query

Environment = Callable[..., AbstractContextManager[None]]
START: Final = datetime(2026, 1, 19, 12, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
OK, DEGRADED, STALE, HALTED = range(4)
RECOVERS: Final = Instrument("x", "spot", "RECOVERS")
RELAPSES: Final = Instrument("x", "spot", "RELAPSES")
DIFFERS: Final = Instrument("x", "spot", "DIFFERS")
PARTLY: Final = Instrument("x", "linear", "PARTLY")
CLEAN: Final = Instrument("x", "linear", "CLEAN")
REASONS: Final = {
    OK: [],
    DEGRADED: ["bucket_duration_p90_s"],
    STALE: ["bucket_lag_s"],
    HALTED: ["bucket_id_anomalies"],
}
# what the findings ask for, minute by minute; from minute 1 on a bucket of every instrument completes each 6 s
ASKED: Final = {
    RECOVERS: [OK, STALE, OK, OK, OK],
    RELAPSES: [DEGRADED, HALTED, DEGRADED, HALTED, DEGRADED],
    DIFFERS: [OK, STALE, DEGRADED, DEGRADED, DEGRADED],
    PARTLY: [OK, STALE, DEGRADED, DEGRADED, DEGRADED],
    CLEAN: [OK, OK, OK, OK, OK],
}
History = list[dict[Instrument, tuple[str, list[str], float]]]


def run_at(minute: int) -> None:
    """One run of the health loop, with these signals."""
    execute("truncate table instrument_signals", layer="features")
    insert(
        "instrument_signals",
        [
            key(i)
            | {
                "signal_rank": asked[minute],
                "reasons": REASONS[asked[minute]],
                "as_of": START + minute * MINUTE,
            }
            for i, asked in ASKED.items()
        ],
    )
    dbt("run", select="instrument_state_changes instrument_states")


def states() -> dict[Instrument, tuple[str, list[str], float]]:
    """State, reasons and the minute in which it began."""
    return {
        Instrument(r["exchange"], r["market_type"], r["symbol"]): (
            r["state"],
            r["reasons"],
            (r["since"] - START) / MINUTE,
        )
        for r in query("select * from instrument_states")
    }


@pytest.fixture(scope="module")
def history(module_store: Settings) -> Iterator[History]:
    """`states()` after each run: the signals by hand, complete buckets and what was scored on them, too."""
    create_relations()
    text = "exchange String, market_type String, symbol String"
    execute(
        f"create table instrument_signals ({text}, signal_rank UInt8, reasons Array(String), "
        "as_of DateTime64(3, 'UTC')) engine = MergeTree order by tuple()",
        layer="features",
    )
    execute(
        f"create table feature_parity_rows ({text}, bucket_ts_end DateTime64(6, 'UTC'), "
        "read_values Array(Float32), values_now Array(Float32)) engine = MergeTree order by tuple()",
        layer="features",
    )
    rows, scored = [], []
    for instrument in ASKED:
        for i in range(30):
            start = START + MINUTE + (3 + 6 * i) * SECOND
            end = {"bucket_ts_end": start + 6 * SECOND}
            rows.append(key(instrument) | end | {"bucket_ts_start": start, "bucket_id": i})
            # one bucket of minute 3 to 4 was scored on another value
            now = 2.0 if instrument == DIFFERS and i == 25 else 1.0
            scored.append(key(instrument) | end | {"read_values": [1.0, np.nan], "values_now": [now, np.nan]})
    found = []
    for minute in range(5):
        # what comes after the run is not there yet
        until = START + minute * MINUTE
        for table, of in (("feature_vector_v2", rows), ("feature_parity_rows", scored)):
            execute(f"truncate table {table}", layer="features")
            insert(table, [r for r in of if r["bucket_ts_end"] <= until])
        run_at(minute)
        found.append(states())
    yield found


def test_a_state_gets_worse_at_once(history: History) -> None:
    assert history[0] == {
        RECOVERS: ("ok", [], 0),
        RELAPSES: ("degraded", REASONS[DEGRADED], 0),
        DIFFERS: ("ok", [], 0),
        PARTLY: ("ok", [], 0),
        CLEAN: ("ok", [], 0),
    }
    assert history[1][RECOVERS] == ("stale", REASONS[STALE], 1)
    assert history[1][RELAPSES] == ("halted", REASONS[HALTED], 1)


def test_it_gets_better_after_ten_complete_buckets(history: History) -> None:
    # better as of minute 2, with the reasons of before until that is believed: nine buckets are too few
    assert history[2][RECOVERS] == history[3][RECOVERS] == ("stale", REASONS[STALE], 1)
    assert history[4][RECOVERS] == ("ok", [], 4)
    assert history[4][PARTLY] == ("degraded", REASONS[DEGRADED], 4)
    rows = query(
        "select state, signal_rank, better_since, complete_buckets from instrument_state_changes "
        "where symbol = 'RECOVERS' order by changed_at"
    )
    assert [tuple(r.values()) for r in rows] == [
        ("ok", OK, None, 0),
        ("stale", STALE, None, 0),
        ("stale", OK, START + 2 * MINUTE, 0),
        ("ok", OK, None, 19),
    ]


def test_a_relapse_or_a_difference_keeps_it_where_it_is(history: History) -> None:
    assert [h[RELAPSES] for h in history[1:]] == [("halted", REASONS[HALTED], 1)] * 4
    assert [h[DIFFERS] for h in history[1:]] == [("stale", REASONS[STALE], 1)] * 4
    assert [h[CLEAN] for h in history] == [("ok", [], 0)] * 5
    assert query("select count() as n from instrument_state_changes where symbol = 'CLEAN'") == [{"n": 1}]


def test_a_run_again_adds_nothing(history: History) -> None:
    before = query("select count() as n from instrument_state_changes")
    run_at(4)
    assert query("select count() as n from instrument_state_changes") == before
    assert states() == history[4]


@pytest.fixture
def shelf(history: History, tmp_path: Path) -> Iterator[Shelf]:
    """A champion that says up, a baseline that says down, and a fresh row of each instrument."""
    create()
    for instrument in ASKED:
        insert_buckets(bucket(instrument, START + 5 * MINUTE, 1))
    up, [down] = follow_flow(1, 20), follow_flow(1, 20)
    models = {
        "up": make_model(tmp_path / "up", up),
        "down": make_model(tmp_path / "down", [-down]),
    }
    yield Shelf(models, State("up", None, "down"))
    execute("truncate table predictions", layer="serving")


def served(scorer: Scorer, at: datetime = START + 5 * MINUTE) -> dict[Instrument, tuple[str, int, str, str]]:
    return {p.instrument: (p.role, p.signal, p.fallback, p.fallback_reason) for p in scorer.score(as_of=at)}


def test_the_scorer_obeys(shelf: Shelf, environment: Environment) -> None:
    fit = ("champion", 1, "", "")
    with environment(states_poll_s="0"), Scorer(shelf.deployments) as scorer:
        assert served(scorer) == {
            RECOVERS: fit,
            CLEAN: fit,
            PARTLY: ("baseline", -1, "baseline", "degraded: bucket_duration_p90_s"),
            DIFFERS: ("champion", 0, "none", "stale: bucket_lag_s"),
            RELAPSES: ("champion", 0, "none", "halted: bucket_id_anomalies"),
        }
        kept = {
            (r["symbol"], r["fallback"], r["fallback_reason"], r["score"] == 0)
            for r in written()
            if r["served"]
        }
        assert ("DIFFERS", "none", "stale: bucket_lag_s", True) in kept
        assert ("PARTLY", "baseline", "degraded: bucket_duration_p90_s", False) in kept


def test_a_change_is_obeyed_at_the_next_look_and_a_missing_relation_changes_nothing(
    shelf: Shelf, environment: Environment
) -> None:
    fit = ("champion", 1, "", "")
    assert Settings.model_fields["states_poll_s"].metadata[-1].le + 5 <= 10, "10 s, with a round of 5"
    execute("create table kept_states as instrument_states", layer="features")
    execute("insert into kept_states select * from instrument_states", layer="features")
    try:
        with environment(states_poll_s="0"), Scorer(shelf.deployments) as scorer:
            assert served(scorer)[CLEAN] == fit
            insert(
                "instrument_states",
                [key(CLEAN) | {"state": "halted", "reasons": ["a", "b"], "since": START, "as_of": START}],
            )
            assert served(scorer)[CLEAN] == ("champion", 0, "none", "halted: a, b")
            # one that begins later says nothing of now
            execute(
                "alter table instrument_states update since = since + toIntervalMinute(6) where 1 settings mutations_sync = 2",
                layer="features",
            )
            assert served(scorer)[CLEAN] == fit
            execute("alter table instrument_states rename column state to stare", layer="features")
            assert served(scorer)[CLEAN] == fit
            assert "instrument_states" in scorer.states_problem
            execute("drop table instrument_states sync", layer="features")
            assert set(served(scorer).values()) == {fit}
            assert scorer.states_problem == ""
    finally:
        execute("drop table if exists instrument_states sync", layer="features")
        execute("rename table kept_states to instrument_states", layer="features")


def test_who_stands_in_for_a_degraded_instrument(shelf: Shelf, environment: Environment) -> None:
    reason = "degraded: bucket_duration_p90_s"
    with environment(states_poll_s="0"):
        for state, expected in (
            # the baseline is the champion: it is loaded once
            (State("down", None, "down"), ("champion", -1, "baseline", reason)),
            # there is none
            (State("up", None, None), ("champion", 0, "none", reason)),
        ):
            with Scorer(Shelf(shelf.models, state).deployments) as scorer:
                assert served(scorer)[PARTLY] == expected
        # a single model of a baseline's type
        with Scorer(shelf.models["up"]) as scorer:
            assert served(scorer)[PARTLY] == ("champion", 1, "baseline", reason)
