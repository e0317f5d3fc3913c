"""What is deployed, scored by the Scorer: windows, shadow models, degradation, the confidence gate and budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clickhouse_driver import Client

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, load_model
from python_udfs.scorer.scorer import Deployments, Instrument, Prediction, Scorer
from python_udfs.settings import Settings, settings
from tests.scoring import (
    CONTRACT,
    NOON,
    ONE,
    TWO,
    bucket,
    create,
    follow_flow,
    insert,
    make_model,
    written,
)

Environment = Callable[..., AbstractContextManager[None]]
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
WINDOW = 4


@dataclass(frozen=True)
class State:
    champion: str | None = None
    challenger: str | None = None
    baseline: str | None = None
    share: int = 0
    sequence: int = 1


@dataclass
class Shelf:
    """A registry in memory: models by reference, the state, and the instruments that the challenger serves."""

    models: dict[str, Path]
    state: State
    challenged: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    looks: int = 0

    def current(self, client: Client) -> State:
        self.looks += 1
        return self.state

    def load(self, reference: str) -> tuple[Card, bytes]:
        if reference not in self.models:
            raise UserError(f"{reference} is not registered")
        return load_model(self.models[reference])

    def served_by(self, instrument: str, challenger: str, share: int) -> bool:
        self.asked.append((instrument, challenger, share))
        return instrument in self.challenged

    @property
    def deployments(self) -> Deployments:
        return Deployments(current=self.current, load=self.load, served_by=self.served_by)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that follow the flow, sure (2 logits: 0.99 at flow 1) or unsure, of one row or of a window."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "sure": make_model(folder / "sure", follow_flow(1, 5.0)),
        "unsure": make_model(folder / "unsure", follow_flow(1, 0.2)),
        "easy": make_model(folder / "easy", follow_flow(1, 0.3), confidence=0.4),
        "against": make_model(folder / "against", follow_flow(1, -5.0)),
        "network": make_model(
            folder / "network", follow_flow(WINDOW, 5.0), window=WINDOW, source="sequence_inputs"
        ),
        "narrow": make_model(
            folder / "narrow",
            [np.array([[-5.0, 0, 5.0], [0, 0, 0]])],
            features=[CONTRACT[0], CONTRACT[2]],
        ),
    }


@pytest.fixture
def tables(module_store: Settings) -> Iterator[Settings]:
    create()
    create(table="sequence_inputs_v1")
    with db.connect(module_store.database("serving")) as c:
        for table in ("predictions", "prediction_inputs", "scored_models"):
            c.execute(f"truncate table {table}")
    yield module_store


def both(*buckets: tuple[Any, ...]) -> None:
    insert(*buckets)
    insert(*buckets, table="sequence_inputs_v1")


def inputs() -> dict[str, list[float]]:
    with db.connect(settings().database("serving")) as c:
        return dict(c.execute("select feature_hash, inputs from prediction_inputs"))


def roles(predictions: list[Prediction]) -> list[tuple[str, str, bool, str]]:
    return [(p.symbol, p.role, p.served, p.fallback) for p in predictions]


def window_of(scorer: Scorer, instrument: Instrument = ONE) -> list[float]:
    """The flows of the last window that was stored for this instrument's champion."""
    [p] = [p for p in scorer.score_all([instrument], as_of=None) if p.role == "champion"]
    return np.array(inputs()[p.feature_hash]).reshape(WINDOW, -1)[:, 0].tolist()


def test_a_window_is_the_last_rows_in_order(tables: Settings, models: dict[str, Path]) -> None:
    insert(
        *(bucket(ONE, NOON + 2 * k * SECOND, k) for k in range(6)),
        *(bucket(TWO, NOON + 2 * k * SECOND, 10 + k) for k in range(9)),
        table="sequence_inputs_v1",
    )
    with Scorer(models["network"]) as scorer:
        assert window_of(scorer) == [2, 3, 4, 5]
        assert window_of(scorer, TWO) == [15, 16, 17, 18]
        # warm: both from where each was left, by one query
        insert(bucket(ONE, NOON + 12 * SECOND, 6), table="sequence_inputs_v1")
        one = scorer.score([ONE, TWO])[0]
        assert np.array(inputs()[one.feature_hash]).reshape(WINDOW, -1)[:, 0].tolist() == [3, 4, 5, 6]
        assert window_of(scorer, TWO) == [15, 16, 17, 18]
        [past] = scorer.score([ONE], as_of=NOON + 6 * SECOND)
        assert np.array(inputs()[past.feature_hash]).reshape(WINDOW, -1)[:, 0].tolist() == [0, 1, 2, 3]


def test_what_a_window_lacks_is_missing_in_front(tables: Settings, models: dict[str, Path]) -> None:
    insert(*(bucket(ONE, NOON + 2 * k * SECOND, k) for k in range(2)), table="sequence_inputs_v1")
    with Scorer(models["network"]) as scorer:
        for _ in range(2):  # cold and warm
            assert np.array_equal(window_of(scorer), [np.nan, np.nan, 0, 1], equal_nan=True)
        [p] = scorer.score([ONE], as_of=NOON + 2 * SECOND)
        assert (p.missing_features, p.unusable, p.fallback) == (6, "missing", "none")
        insert(*(bucket(ONE, NOON + 2 * k * SECOND, k) for k in (2, 3)), table="sequence_inputs_v1")
        assert window_of(scorer) == [0, 1, 2, 3]


def test_a_long_silence_cuts_a_window(
    tables: Settings, models: dict[str, Path], environment: Environment
) -> None:
    # the second bucket starts one hour after the first one ended; the last one a microsecond more
    ends = [NOON, NOON + HOUR + 2 * SECOND, NOON + HOUR + 4 * SECOND, NOON + 2 * HOUR + 6.000001 * SECOND]
    insert(*(bucket(ONE, end, k) for k, end in enumerate(ends[:3])), table="sequence_inputs_v1")
    with Scorer(models["network"]) as scorer:
        assert np.array_equal(window_of(scorer), [np.nan, 0, 1, 2], equal_nan=True)
        insert(bucket(ONE, ends[3], 3), table="sequence_inputs_v1")
        assert np.array_equal(window_of(scorer), [np.nan, np.nan, np.nan, 3], equal_nan=True)
        with environment(window_max_gap_s="3601"):
            assert window_of(scorer) == [0, 1, 2, 3]


def test_rows_from_days_ago_are_found(
    tables: Settings, models: dict[str, Path], environment: Environment
) -> None:
    """Farther back than the last hour and the last day of data; and back again when a rebuild takes rows away."""
    days = timedelta(days=1)
    insert(
        *(bucket(ONE, NOON - 2 * k * days, k) for k in range(5)),
        *(bucket(TWO, NOON + k * SECOND, 10 + k) for k in range(0, 20, 2)),
        table="sequence_inputs_v1",
    )
    with environment(window_max_gap_s="1e7"), Scorer(models["network"]) as scorer:
        for _ in range(2):
            assert window_of(scorer) == [3, 2, 1, 0]
            assert window_of(scorer, TWO) == [22, 24, 26, 28]
        with db.connect(settings().database("features")) as c:
            c.execute("alter table sequence_inputs_v1 drop partition 20240806")
        assert window_of(scorer) == [4, 3, 2, 0]


def test_all_models_score_all_instruments_and_one_is_served(
    tables: Settings, models: dict[str, Path]
) -> None:
    both(*(bucket(i, NOON + 2 * k * SECOND, 1) for i in (ONE, TWO) for k in range(WINDOW)))
    shelf = Shelf(models, State("network", "sure", "narrow", share=20, sequence=7), {str(TWO)})
    with Scorer(shelf.deployments) as scorer:
        now = NOON + 6 * SECOND
        assert roles(scorer.score_all([ONE, TWO], as_of=now)) == [
            ("ONE", "champion", True, ""),
            ("ONE", "challenger", False, ""),
            ("ONE", "baseline", False, ""),
            ("TWO", "champion", False, ""),
            ("TWO", "challenger", True, ""),
            ("TWO", "baseline", False, ""),
        ]
        assert set(shelf.asked) == {(str(ONE), "sure", 20), (str(TWO), "sure", 20)}
        assert [(p.symbol, p.model_name) for p in scorer.score([TWO, ONE], as_of=now)] == [
            ("TWO", "sure"),
            ("ONE", "network"),
        ]
        assert [Instrument(*p[2:5]) for p in scorer.score(as_of=now, write=False)] == [TWO, ONE]
        assert scorer.newest() == now
    rows = written()
    assert len(rows) == 12
    assert {row["deployment"] for row in rows} == {7}
    served = [(row["symbol"], row["model_name"]) for row in rows if row["served"]]
    assert sorted(served) == [("ONE", "network")] * 2 + [("TWO", "sure")] * 2
    # each model ran once per call, on both, in the order asked for
    assert {row["batch_size"] for row in rows} == {2}
    places = {(row["symbol"], row["place"]) for row in rows if row["role"] == "champion"}
    assert places == {(symbol, place) for symbol in ("ONE", "TWO") for place in (0, 1)}


def test_inputs_are_stored_once_for_all_that_read_them(tables: Settings, models: dict[str, Path]) -> None:
    insert(bucket(ONE, NOON, 1, 0.5, 7), bucket(TWO, NOON, 1, 0.5, 7))
    shelf = Shelf(models, State("sure", "against", "narrow"))
    with Scorer(shelf.deployments) as scorer:
        for _ in range(3):
            predictions = scorer.score_all(as_of=NOON)
        champion, challenger, baseline = predictions[:3]
        assert champion.feature_hash == challenger.feature_hash != baseline.feature_hash
        with db.connect(settings().database("serving")) as c:
            assert sorted(c.execute("select inputs from prediction_inputs")) == [
                ([1.0, 0.5, 7.0],),
                ([1.0, 7.0],),
            ]
            assert c.execute(
                "select model_name, relation, rows_read, features from scored_models order by model_name"
            ) == [
                ("against", "feature_vector_v1", 1, ["flow", "spread", "trades"]),
                ("narrow", "feature_vector_v1", 1, ["flow", "trades"]),
                ("sure", "feature_vector_v1", 1, ["flow", "spread", "trades"]),
            ]


def test_inputs_are_stored_again_before_they_expire(
    tables: Settings, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(bucket(ONE, NOON))
    count = "select count() from prediction_inputs"
    with Scorer(models["sure"]) as scorer, db.connect(settings().database("serving")) as c:
        scorer.score([ONE], write=False)
        assert c.execute(count) == [(0,)]
        scorer.score([ONE])
        scorer.score([ONE])
        assert c.execute(count) == [(1,)]
        monkeypatch.setattr("python_udfs.scorer.scorer._STORE_AGAIN_S", 0)
        scorer.score([ONE])
        assert c.execute(count) == [(2,)]


STALE = NOON - timedelta(minutes=5)


@pytest.mark.parametrize(
    ("sequence", "vector", "expected"),
    [
        # (end and spread of the last bucket of) what the champion reads, what the baseline reads
        ((NOON, 1.0), (NOON, 1.0), ("champion", "", "")),
        ((STALE, 1.0), (NOON, 1.0), ("baseline", "baseline", "stale")),
        ((NOON, None), (NOON, 1.0), ("baseline", "baseline", "missing")),
        ((STALE, None), (NOON, 1.0), ("baseline", "baseline", "stale, missing")),
        (None, (NOON, 1.0), ("baseline", "baseline", "no row")),
        ((STALE, 1.0), (STALE, 1.0), ("champion", "none", "stale")),
        ((NOON, None), (STALE, 1.0), ("champion", "none", "missing")),
        ((NOON, None), None, ("champion", "none", "missing")),
        (None, (STALE, 1.0), ("baseline", "none", "no row")),
        ((NOON, 1.0), (STALE, 1.0), ("champion", "", "")),
    ],
)
def test_what_is_not_fit_is_not_served(
    tables: Settings,
    models: dict[str, Path],
    sequence: tuple[Any, Any] | None,
    vector: tuple[Any, Any] | None,
    expected: tuple[str, str, str],
) -> None:
    served, fallback, _ = expected
    if sequence:
        rows = [bucket(ONE, sequence[0] - 2 * k * SECOND, 1, sequence[1]) for k in range(WINDOW)]
        insert(*rows, table="sequence_inputs_v1")
    if vector:
        insert(bucket(ONE, vector[0], -1, vector[1]))
    shelf = Shelf(models, State("network", None, "sure"))
    with Scorer(shelf.deployments) as scorer:
        everything = scorer.score_all([ONE], as_of=NOON)
        [p] = [p for p in everything if p.served]
        assert (p.role, p.fallback, p.fallback_reason) == expected
        if fallback == "none":
            assert (p.score, p.signal) == (0, 0)
        else:
            assert p.signal == (1 if served == "champion" else -1)
            assert p.signal * p.score > 0.9
        # what the model said is kept all the same, and why it was not listened to
        for other in everything:
            assert sum(other.probabilities) == pytest.approx(1)
            assert (other.score == 0) == (other.signal == 0) == bool(
                other.unusable
            ) or other.fallback == "none"
    assert [(r["role"], r["served"], r["fallback"], r["unusable"], r["signal"]) for r in written()] == [
        (p.role, p.served, p.fallback, p.unusable, p.signal) for p in everything
    ]


def test_five_percent_may_be_missing(
    tables: Settings, models: dict[str, Path], environment: Environment
) -> None:
    insert(bucket(ONE, NOON, 1, None))
    with Scorer(models["sure"]) as scorer:
        assert scorer.score([ONE], as_of=NOON)[0].unusable == "missing", "one of three"
        with environment(max_missing="0.34"):
            assert scorer.score([ONE], as_of=NOON)[0].unusable == ""


def test_a_challenger_that_is_not_fit_gives_way_to_the_baseline(
    tables: Settings, models: dict[str, Path]
) -> None:
    insert(bucket(ONE, NOON, 1))
    shelf = Shelf(models, State("sure", "network", "against", share=100), {str(ONE)})
    create(table="sequence_inputs_v1")
    with Scorer(shelf.deployments) as scorer:
        assert roles(scorer.score_all([ONE], as_of=NOON)) == [
            ("ONE", "champion", False, ""),
            ("ONE", "baseline", True, "baseline"),
        ]


@pytest.mark.parametrize(
    ("model", "flow", "signal"),
    # softmax(-0.2, 0, 0.2)[2] = 0.40; softmax(-0.3, 0, 0.3)[2] = 0.44
    [("sure", 1, 1), ("sure", -1, -1), ("sure", 0, 0), ("unsure", 1, 0), ("unsure", -1, 0), ("easy", 1, 1), ("easy", 0, 0)],
)  # fmt: skip
def test_a_signal_is_what_is_likely_enough(
    tables: Settings, models: dict[str, Path], model: str, flow: float, signal: int
) -> None:
    insert(bucket(ONE, NOON, flow))
    with Scorer(models[model]) as scorer:
        [p] = scorer.score([ONE], as_of=NOON)
    assert p.signal == signal
    assert p.confidence == max(p.probabilities)
    assert p.threshold == pytest.approx(0.4 if model == "easy" else 0.6)
    assert np.sign(p.score) == flow, "the gate leaves the score alone"


def test_the_threshold_is_a_setting(
    tables: Settings, models: dict[str, Path], environment: Environment
) -> None:
    insert(bucket(ONE, NOON, 1))
    with Scorer(models["unsure"]) as scorer:
        p = scorer.score([ONE], as_of=NOON)[0]
        with environment(confidence=repr(p.confidence)):
            assert scorer.score([ONE], as_of=NOON)[0].signal == 1
        with environment(confidence=repr(float(np.nextafter(np.float32(p.confidence), np.float32(1))))):
            assert scorer.score([ONE], as_of=NOON)[0].signal == 0


def test_budgets_are_written_and_what_is_over_is_named(
    tables: Settings, models: dict[str, Path], environment: Environment
) -> None:
    both(*(bucket(ONE, NOON + 2 * k * SECOND, 1) for k in range(WINDOW)))
    wide, narrow = (
        f'{{"read": {r}, "prepare": 1e6, "run": 1e6, "total": {t}}}' for r, t in ((1e6, 2e6), (1e-3, 1e-3))
    )
    shelf = Shelf(models, State("network", None, "sure"))
    with environment(network_budget_ms=narrow, baseline_budget_ms=wide), Scorer(shelf.deployments) as scorer:
        scorer.score([ONE])
        scorer.score([ONE])
    baseline, champion = (
        [row for row in written() if row["role"] == role] for role in ("baseline", "champion")
    )
    for row in champion:
        assert row["over_budget"] == ["read", "total"]
        assert (row["read_budget_us"], row["total_budget_us"]) == (1, 1)
    for row in baseline:
        assert row["over_budget"] == []
        assert row["total_us"] == row["read_us"] + row["prepare_us"] + row["run_us"]
    first, second = sorted(row["last_write_us"] for row in baseline)
    assert first == 0 < second


def test_a_new_deployment_is_served_without_a_restart(
    tables: Settings, models: dict[str, Path], environment: Environment
) -> None:
    insert(bucket(ONE, NOON, 1))
    shelf = Shelf(models, State("sure"))
    with Scorer(shelf.deployments) as scorer:
        for _ in range(5):
            scorer.score([ONE])
        assert shelf.looks == 1, "not per call"
        shelf.state = State("against", sequence=2)
        with environment(deployment_poll_s="0"):
            [p] = scorer.score([ONE], as_of=NOON)
            assert (p.model_name, p.deployment, p.signal) == ("against", 2, -1)
            # one that cannot be served leaves the last in use, and says so
            shelf.state = State("gone", sequence=3)
            assert scorer.score([ONE])[0].deployment == 2
            assert scorer.problem == "deployment 2 stays in use: gone is not registered"
            shelf.state = replace(shelf.state, champion="network", baseline="sure", sequence=4)
            both(*(bucket(ONE, NOON + 2 * k * SECOND, 1) for k in range(1, 1 + WINDOW)))
            [p] = scorer.score([ONE], as_of=NOON + 8 * SECOND)
            assert (p.model_name, p.deployment, scorer.problem) == ("network", 4, "")


def test_nothing_deployed_says_what_to_do(tables: Settings, models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no model is deployed: run `marketprism models promote"):
        Scorer(Shelf(models, State(sequence=0)).deployments)


def test_a_model_has_one_part(tables: Settings, models: dict[str, Path]) -> None:
    insert(bucket(ONE, NOON, 1))
    shelf = Shelf(models, State("sure", None, "sure"))
    with Scorer(shelf.deployments) as scorer:
        assert roles(scorer.score_all([ONE], as_of=NOON)) == [("ONE", "champion", True, "")]


def test_an_onnx_file_of_another_shape_is_refused(tables: Settings, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", follow_flow(2, 1), window=2)
    card = (folder / "card.json").read_text()
    (folder / "card.json").write_text(card.replace('"window":2', '"window":3'))
    with pytest.raises(UserError, match=r"takes inputs of shape \[2, 3\], its card says \[3, 3\]"):
        Scorer(folder)
