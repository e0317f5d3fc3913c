"""What the bench measures of ours is right: the as_of macro's answer, and scores of rows that are new at each call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.bench.assembly import Question, ours
from python_udfs.jobs.bench.live import burst, resident_mib
from python_udfs.jobs.bench.score import BATCHES, Feed, _baseline, _measure, contract
from python_udfs.scorer.card import live_columns
from python_udfs.settings import Settings
from tests.unit.test_bench import one


@pytest.mark.parametrize("question", [one(), Question.made(500, 2, 5)], ids=["by hand", "made"])
def test_our_answer_is_numpys(module_store: Settings, question: Question) -> None:
    found = ours(question, question.answer(), runs=1)
    assert found.rows == len(question.as_of)
    assert found.table and found.numpy


def test_a_wrong_answer_of_ours_is_not_measured(module_store: Settings) -> None:
    question = one()
    expected = question.answer()
    expected[2, 1] = 7
    with pytest.raises(UserError, match=r"ClickHouse to table gives another answer.* first row 2 in a"):
        ours(question, expected, runs=1)


def test_every_call_scores_a_new_bucket(module_store: Settings, tmp_path: Path) -> None:
    with db.connect(module_store.database("features")) as c:
        first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
        feed = Feed(c, "feature_vector_v1", contract("feature_vector", 1), max(BATCHES), first)
        feed.create(400)  # over an hour: bucket ids restart
        _baseline(tmp_path / "baseline", live_columns(c, 1))
        found = _measure(tmp_path / "baseline", feed, calls=3)
        assert {n: {what: len(ms) for what, ms in of.items()} for n, of in found.items()} == {
            n: {"ort": 3, "read": 3, "all": 3} for n in BATCHES
        }
        keys, ids, starts = c.execute(
            "select uniqExact(symbol, bucket_id), uniqExact(symbol), "
            "countIf(intDiv(bucket_id, 100000) != toUnixTimestamp(toStartOfHour(bucket_ts_start))) "
            "from feature_vector_v1"
        )[0]
        assert (keys, ids, starts) == (feed.count * max(BATCHES), max(BATCHES), 0)
        [(scored,)] = c.execute(
            f"select uniqExact(bucket_id) from {module_store.database('serving')}.predictions where symbol = 'S000'"
        )
        # ten calls warm up
        assert scored == len(BATCHES) * 13


def test_a_burst_is_a_trade_a_second_of_each_and_a_feed_complete_behind_them(module_store: Settings) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    with db.connect(module_store.database("hot")) as c:
        assert [burst(c, begin + timedelta(seconds=3 * k), 3, 4) for k in range(2)] == [12, 12]
        assert c.execute(
            "select count(), uniqExact(symbol), uniqExact(symbol, trade_id), min(timestamp), max(timestamp) from trades"
        ) == [(24, 4, 24, begin, begin + timedelta(seconds=5))]
        assert c.execute("select kind, max(watermark) from watermarks group by kind order by kind") == [
            (kind, begin + timedelta(seconds=6)) for kind in ("orderbooks", "trades")
        ]


def test_a_local_server_has_memory_and_another_is_not_asked(
    module_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (resident_mib() is None) == (module_store.target == "server")
    monkeypatch.setattr("python_udfs.server.status", lambda: None)
    assert resident_mib() is None
