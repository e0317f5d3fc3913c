from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import typer
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer import relation as relation_module
from python_udfs.scorer.card import INPUT, OUTPUT, Card, Column, ModelType, load_model
from python_udfs.scorer.cli import score_command
from python_udfs.scorer.scorer import Instrument, Prediction, Scorer
from python_udfs.settings import REPOSITORY, Settings, settings
from python_udfs.training.cli import train_command
from python_udfs.training.dataset import Dataset, Label, read_dataset
from python_udfs.training.train import train
from tests.scoring import CONTRACT, NOON, ODD, ONE, TWO, bucket, create, insert, written

Environment = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model over CONTRACT: up where `flow` is high."""
    rng = np.random.default_rng(0)
    n = 600
    features = rng.normal(size=(n, 3)).astype(np.float32)
    features[::7, 1] = np.nan
    data = Dataset(
        label=Label("label_cls_3", "3"),
        contract=CONTRACT,
        features=features,
        classes=np.sign(np.round(features[:, 0] + 0.3 * rng.normal(size=n))).astype(np.int8),
        returns=features[:, 0].astype(np.float64),
        as_of=np.arange(n, dtype=np.int64),
        known_at=np.arange(n, dtype=np.int64),
        instrument=np.zeros(n, dtype=np.int64),
        instruments=[str(ONE)],
    )
    folder = tmp_path_factory.mktemp("models") / "small"
    train(data, ModelType.LOGISTIC, folder, folds=2)
    return folder


@pytest.fixture
def table(module_store: Settings) -> Iterator[Settings]:
    """An empty feature_vector_v1 and no predictions."""
    create()
    with db.connect(module_store.database("serving")) as c:
        c.execute("truncate table predictions")
    yield module_store
    with db.connect(module_store.database("features")) as c:
        for (name,) in c.execute("show tables"):
            c.execute(f"drop table {db.names([name])} sync")


@pytest.fixture
def scorer(table: Settings, model: Path) -> Iterator[Scorer]:
    with Scorer(model) as opened:
        yield opened


def flows(scorer: Scorer, predictions: Sequence[Prediction]) -> list[float]:
    """The `flow` that each prediction was made from, found by its hash among the rows that are there."""
    with db.connect(settings().database("features")) as c:
        found = c.execute("select flow, spread, trades from feature_vector_v1")
    inputs = [np.array([np.nan if v is None else v for v in row], dtype=np.float32) for row in found]
    by_hash = {hashlib.sha256(row.tobytes()).hexdigest(): float(row[0]) for row in inputs}
    return [by_hash[p.feature_hash] for p in predictions]


def test_one_instrument_by_hand(scorer: Scorer, model: Path, environment: Environment) -> None:
    insert(
        bucket(ONE, NOON, 1.5, None, 7),
        bucket(ONE, NOON - timedelta(seconds=2), -9.0),
        bucket(TWO, NOON, 4.0),
    )
    with environment(max_missing="0.34"):
        [p] = scorer.score([ONE], as_of=NOON + timedelta(milliseconds=1500))
    inputs = np.array([[1.5, np.nan, 7]], dtype=np.float32)
    card, onnx = load_model(model)
    expected = ort.InferenceSession(onnx).run([OUTPUT], {INPUT: inputs})[0][0]
    assert p.probabilities == expected.tolist()
    assert p.score == pytest.approx(expected[2] - expected[0])
    assert p.score > 0.5
    assert p.feature_hash == hashlib.sha256(inputs.tobytes()).hexdigest()
    assert (p.missing_features, p.stale, p.age_ms) == (1, False, 1500)
    assert (p.bucket_id, p.bucket_ts_end) == (bucket(ONE, NOON)[3], NOON)
    assert (p.model_name, p.model_version, p.feature_vector_version) == ("small", card.version, 1)
    assert p.total_us >= p.read_us > 0
    [row] = written()
    assert {**row, "score": None, "probabilities": None} == {
        **p._asdict(),
        "score": None,
        "probabilities": None,
    }
    assert row["probabilities"] == p.probabilities
    assert np.float32(row["score"]) == np.float32(p.score)


def test_many_instruments_come_in_the_order_asked_for(scorer: Scorer) -> None:
    many = [Instrument("x", "spot", f"S{i}") for i in range(60)]
    insert(
        *(
            bucket(i, NOON - timedelta(seconds=2 * k), n + k / 10)
            for k in (3, 1, 2)
            for n, i in enumerate(many)
        )
    )
    asked = many[::-1]
    predictions = scorer.score(asked)
    assert [Instrument(*p[2:5]) for p in predictions] == asked
    assert flows(scorer, predictions) == pytest.approx([n + 0.1 for n in range(60)][::-1])
    assert {p.bucket_ts_end for p in predictions} == {NOON - timedelta(seconds=2)}
    rows = written()
    assert len(rows) == 60
    assert len({row["request_id"] for row in rows}) == 1
    # asking twice for one gives it once
    assert len(scorer.score([ONE_OF := many[0], ONE_OF], write=False)) == 1
    assert len(written()) == 60


def test_no_instrument_named_means_all_by_name(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(bucket(ONE, NOON), bucket(ODD, NOON - timedelta(days=3)), bucket(TWO, NOON))
    assert [Instrument(*p[2:5]) for p in scorer.score()] == sorted([ONE, TWO, ODD])
    new = Instrument("y", "spot", "NEW")
    insert(bucket(new, NOON))
    monkeypatch.setattr(relation_module, "_LIST_AGE_S", 0)
    assert [Instrument(*p[2:5]) for p in scorer.score()] == sorted([ONE, TWO, ODD, new])


def test_each_call_sees_the_newest_bucket(scorer: Scorer) -> None:
    for k in range(4):
        insert(bucket(ONE, NOON + timedelta(seconds=2 * k), k))
        if k != 2:
            insert(bucket(TWO, NOON + timedelta(hours=k), -k))
        assert flows(scorer, scorer.score([ONE, TWO])) == [k, -k if k != 2 else -1]


def test_what_was_seen_before_is_read_in_one_query(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Instrument("x", "spot", f"S{i}") for i in range(5)]
    insert(*(bucket(i, NOON) for i in many))
    scorer.score(many)
    asked: list[str] = []

    def listening(execute: Callable[..., Any], query: str, *arguments: Any, **options: Any) -> Any:
        asked.append(query)
        return execute(query, *arguments, **options)

    for c in (scorer._c, scorer._arrays):
        monkeypatch.setattr(c, "execute", partial(listening, c.execute))
    insert(bucket(many[2], NOON + timedelta(seconds=2), 3))
    assert flows(scorer, scorer.score(many)) == [0, 0, 3, 0, 0]
    # one insert per table: a new input, and the predictions
    assert [query.split("(")[0].split()[0] for query in asked] == ["select", "insert", "insert"]
    assert ["prediction_inputs" in query for query in asked] == [False, True, False]
    asked.clear()
    scorer.score(many)
    assert [query.split()[0] for query in asked] == ["select", "insert"], "nothing new was read"


def test_an_instrument_that_fell_behind_by_days_is_found_cold_and_warm(scorer: Scorer) -> None:
    insert(bucket(ONE, NOON, 1), bucket(TWO, NOON - timedelta(days=40), 2))
    for _ in range(3):
        assert flows(scorer, scorer.score([ONE, TWO])) == [1, 2]
    insert(bucket(ONE, NOON + timedelta(seconds=2), 3), bucket(TWO, NOON - timedelta(days=39), 4))
    assert flows(scorer, scorer.score([ONE, TWO])) == [3, 4]


def test_a_bucket_that_a_rebuild_took_away_is_not_missed(scorer: Scorer) -> None:
    insert(bucket(ONE, NOON - timedelta(days=2), 1), bucket(ONE, NOON, 2))
    assert flows(scorer, scorer.score([ONE])) == [2]
    with db.connect(settings().database("features")) as c:
        c.execute("alter table feature_vector_v1 drop partition 20240808")
    assert flows(scorer, scorer.score([ONE])) == [1]


def test_as_of_sees_nothing_later(scorer: Scorer) -> None:
    insert(*(bucket(ONE, NOON + timedelta(seconds=2 * k), k) for k in range(5)))
    assert flows(scorer, scorer.score([ONE])) == [4]
    assert flows(scorer, scorer.score([ONE], as_of=NOON + timedelta(seconds=4))) == [2]
    assert flows(scorer, scorer.score([ONE], as_of=NOON + timedelta(seconds=3.999999))) == [1]
    assert flows(scorer, scorer.score([ONE], as_of=NOON + timedelta(days=400))) == [4]
    with pytest.raises(UserError, match="no bucket of x:spot:ONE at that time"):
        scorer.score([ONE], as_of=NOON - timedelta(seconds=1))
    with pytest.raises(UserError, match="has no time zone"):
        scorer.score([ONE], as_of=NOON.replace(tzinfo=None))
    assert scorer.newest() == NOON + timedelta(seconds=8)


def test_older_than_the_limit_is_stale_and_still_written(table: Settings, model: Path) -> None:
    insert(bucket(ONE, NOON), bucket(TWO, NOON - timedelta(milliseconds=1)))
    with Scorer(model, max_age_s=10) as scorer:
        predictions = scorer.score([ONE, TWO], as_of=NOON + timedelta(seconds=10))
        assert [(p.age_ms, p.stale) for p in predictions] == [(10_000, False), (10_001, True)]
        assert scorer.score([ONE])[0].stale, "2024 is long ago"
    assert [row["stale"] for row in written()] == [False, True, True]


def test_names_with_quotes_and_slashes_are_only_names(scorer: Scorer) -> None:
    insert(bucket(ODD, NOON, 3), bucket(ONE, NOON, 1))
    [p] = scorer.score([ODD])
    assert (p.exchange, p.symbol, flows(scorer, [p])) == (ODD.exchange, ODD.symbol, [3])
    assert flows(scorer, scorer.score([ODD])) == [3], "warm too"
    assert {row["symbol"] for row in written()} == {ODD.symbol}


def test_what_cannot_be_a_number_counts_as_missing(scorer: Scorer) -> None:
    insert(bucket(ONE, NOON, float("inf"), float("-inf")), bucket(TWO, NOON, float("nan"), None))
    one, two = scorer.score([ONE, TWO])
    assert one.missing_features == two.missing_features == 2
    assert one.feature_hash == two.feature_hash
    assert np.isfinite(one.probabilities).all()


def test_an_unknown_instrument_is_named_with_what_was_meant(scorer: Scorer) -> None:
    insert(bucket(ONE, NOON))
    with pytest.raises(UserError, match="no bucket of x:spot:0NE at that time: did you mean x:spot:ONE"):
        scorer.score([ONE, Instrument("x", "spot", "0NE")])
    with pytest.raises(UserError, match="no bucket of binance:option:Z at that time: there is x:spot:ONE"):
        scorer.score([Instrument("binance", "option", "Z")])
    assert written() == []


@pytest.mark.parametrize("instruments", [None, [ONE]])
def test_an_empty_table(scorer: Scorer, instruments: list[Instrument] | None) -> None:
    with pytest.raises(
        UserError, match="feature_vector_v1 has no bucket: ingest data, then run `make build`"
    ):
        scorer.score(instruments)
    with pytest.raises(UserError, match="has no bucket"):
        scorer.newest()


@pytest.mark.parametrize(
    ("live", "message"),
    [
        (
            [CONTRACT[0], Column(name="spread_bps", type="Nullable(Float64)"), CONTRACT[2]],
            r"spread Nullable\(Float64\) is missing",
        ),
        (
            [CONTRACT[0], Column(name="spread", type="Float64"), CONTRACT[2]],
            r"spread is Float64, was Nullable\(Float64\)",
        ),
        (
            [CONTRACT[0], CONTRACT[2], CONTRACT[1]],
            "the order changed: trades where spread was, spread where trades was",
        ),
    ],
)
def test_another_contract_is_refused(table: Settings, model: Path, live: list[Column], message: str) -> None:
    create(live)
    with pytest.raises(UserError, match=f"model small .* does not fit feature_vector_v1: {message}"):
        Scorer(model)


def test_a_version_that_is_not_there_is_refused(table: Settings, model: Path) -> None:
    with db.connect(settings().database("features")) as c:
        c.execute("rename table feature_vector_v1 to feature_vector_v2")
    with pytest.raises(UserError, match="has no feature_vector_v1: there is feature_vector_v2"):
        Scorer(model)
    with db.connect(settings().database("features")) as c:
        c.execute("drop table feature_vector_v2 sync")
    with pytest.raises(UserError, match="has no feature_vector_v1: run `make build`"):
        Scorer(model)


def test_a_contract_that_changes_under_a_running_scorer_is_refused(scorer: Scorer) -> None:
    insert(bucket(ONE, NOON))
    scorer.score([ONE])
    with db.connect(settings().database("features")) as c:
        c.execute("alter table feature_vector_v1 rename column spread to spread_bps")
    with pytest.raises(
        UserError, match=r"does not fit feature_vector_v1: spread Nullable\(Float64\) is missing"
    ):
        scorer.score([ONE])
    assert len(written()) == 1


def test_no_predictions_table_names_the_migration(scorer: Scorer, environment: Environment) -> None:
    insert(bucket(ONE, NOON))
    with environment(db_prefix="nobody_"), pytest.raises(UserError, match="Did you run `make migrate`"):
        scorer.score([ONE])


def run(*arguments: str, command: Callable[..., None] = score_command) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def installed(model: Path, environment: Environment, tmp_path: Path) -> Iterator[Path]:
    """A data folder that holds the model under its name."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / model.name).symlink_to(model)
    with environment(data_dir=str(tmp_path)):
        yield tmp_path


def test_once_from_the_command_line(table: Settings, installed: Path) -> None:
    insert(bucket(ONE, NOON, 2), bucket(ODD, NOON - timedelta(minutes=2)))
    shown = run("--model", "small", "--now", "latest")
    assert "2 scored, 1 stale" in shown
    assert "120.0 stale" in shown
    assert [row["age_ms"] for row in written()] == [120_000, 0]
    line = run("--model", "small", "--json", "--no-write", "-i", str(ODD), "--now", "2024-08-08T11:59:00")
    parsed = json.loads(line)
    assert (parsed["symbol"], parsed["age_ms"], parsed["classes"]) == (ODD.symbol, 60_000, [-1, 0, 1])
    assert len(written()) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_scores_until_it_is_told_to_stop(table: Settings, installed: Path, number: int) -> None:
    insert(bucket(ONE, NOON), bucket(TWO, NOON))
    program = "import typer; from python_udfs.scorer.cli import score_command; typer.run(score_command)"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program, "--model", "small", "--loop", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert errors == ""
    lines += rest.splitlines()
    assert all("2 scored, 2 stale" in line for line in lines)
    assert len(written()) == 2 * len(lines), "each round is written whole, the last one too"


def training_set(rows: list[tuple[Any, ...]]) -> None:
    create(CONTRACT)
    create(
        CONTRACT,
        "training_set",
        ", label_ret_ps_3 Nullable(Float64), label_cls_3 Nullable(Int8), "
        "label_known_at_3 Nullable(DateTime64(6, 'UTC'))",
    )
    with db.connect(settings().database("features")) as c:
        c.execute("insert into training_set values", rows)
        c.execute(
            "insert into feature_vector_v1 "
            "select * except (label_ret_ps_3, label_cls_3, label_known_at_3) from training_set"
        )


NAMES = [column.name for column in CONTRACT]


def test_the_training_rows_are_read_as_they_are(table: Settings) -> None:
    second = timedelta(seconds=2)
    label = (0.5, 1, NOON + 9 * second)
    training_set(
        [
            (*bucket(TWO, NOON + second, 2.0, None, 8), -0.5, -1, NOON + 5 * second),
            (*bucket(ONE, NOON, float("inf"), 0.1, 7), *label),
            (*bucket(ONE, NOON + second), None, None, NOON),
            (*bucket(ONE, NOON + 2 * second), 0.5, None, NOON),
            (*bucket(ONE, NOON + 3 * second), 0.5, 1, None),
        ]
    )
    data = read_dataset("label_cls_3", NAMES[::-1])
    assert [column.name for column in data.contract] == NAMES
    assert np.array_equal(
        data.features, np.array([[np.nan, 0.1, 7], [2, np.nan, 8]], dtype=np.float32), equal_nan=True
    )
    assert data.classes.tolist() == [1, -1]
    assert data.returns.tolist() == [0.5, -0.5]
    assert np.diff(data.as_of).tolist() == [2_000_000]
    assert (data.known_at - data.as_of).tolist() == [18_000_000, 8_000_000]
    assert [data.instruments[i] for i in data.instrument] == [str(ONE), str(TWO)]


def test_what_training_needs_is_asked_for_by_name(table: Settings) -> None:
    with pytest.raises(UserError, match="has no training_set: run `make build`"):
        read_dataset("label_cls_3", NAMES)
    training_set([])
    with pytest.raises(UserError, match="training_set has no row with a known label_cls_3"):
        read_dataset("label_cls_3", NAMES)
    with pytest.raises(UserError, match="no class label 'label_cls_9': there is label_cls_3"):
        read_dataset("label_cls_9", NAMES)
    with pytest.raises(UserError, match="not a numeric feature of feature_vector_v1: depth"):
        read_dataset("label_cls_3", ["flow", "depth"])
    with pytest.raises(UserError, match="has no feature_vector_v2: there is feature_vector_v1"):
        read_dataset("label_cls_3", NAMES, 2)
    create([*CONTRACT[:2], Column(name="trades", type="UInt64")])
    with pytest.raises(UserError, match="training_set lags behind feature_vector_v1 in trades UInt64"):
        read_dataset("label_cls_3", NAMES)


def test_from_training_rows_to_predictions_by_two_commands(
    table: Settings, environment: Environment, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for k in range(700):
        end, flow = NOON + timedelta(seconds=2 * k), float(rng.normal())
        up = round(float(np.clip(flow + 0.3 * rng.normal(), -1, 1)))
        rows.append((*bucket(ONE if k % 2 else ODD, end, flow), up * 1e-4, up, end + timedelta(seconds=6)))
    training_set(rows)
    with environment(data_dir=str(tmp_path)):
        shown = run("--features", "spread, flow,trades", "--folds", "2", command=train_command)
        assert "logistic" in shown
        assert "lightgbm" in shown
        for name in ("logistic", "lightgbm"):
            card = Card.model_validate_json((tmp_path / "models" / name / "card.json").read_text())
            assert card.features == NAMES
            assert card.pooled.auc["1"] is not None
            assert card.pooled.auc["1"] > 0.9
            # at each cut the two before it are not known: their labels end 6 s after them
            assert [fold.purged_rows for fold in card.folds] == [2, 2]
            assert "2 scored, 0 stale" in run("--model", name, "--now", "latest")
        with pytest.raises(UserError, match="with one --model only"):
            run("--name", "both", command=train_command)
        with pytest.raises(UserError, match="are too few for 50 folds"):
            run("--features", "flow", "--folds", "50", command=train_command)
    assert {row["model_name"] for row in written()} == {"logistic", "lightgbm"}
