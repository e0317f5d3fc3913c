"""`marketprism train` on tables as dbt makes them: the ladder learns what is planted, and says that shuffled labels are chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer.card import Card, load_model
from python_udfs.settings import Settings, settings
from python_udfs.training import cli
from python_udfs.training.cli import train_command
from python_udfs.training.dataset import read_dataset

Environment = Callable[..., AbstractContextManager[None]]
KEYS = (
    "exchange LowCardinality(String), market_type LowCardinality(String), symbol LowCardinality(String), "
    "bucket_id UInt64, bucket_ts_start DateTime64(6, 'UTC'), bucket_ts_end DateTime64(6, 'UTC')"
)
FEATURES = "flow Float64, noise Nullable(Float64), mid_close Nullable(Float64), spread_bps_close Nullable(Float64), volatility_regime Nullable(Int8)"
LABELS = (
    "label_ret_ps_3 Nullable(Float64), label_cls_3 Nullable(Int8), "
    "label_known_at_3 Nullable(DateTime64(6, 'UTC')), label_ret_30s Nullable(Float64), label_uniqueness_3 Nullable(Float64)"
)
BOOK = ", ".join(
    f"{side}_{kind}_1 Nullable(Float64)" for side in ("bid", "ask") for kind in ("gap_bps", "size")
)
NOON = datetime(2024, 8, 8, 12, tzinfo=UTC)
BUCKETS = 400
BASIC = ("--features", "flow,noise", "--folds", "2")


def _create(table: str, columns: str, rows: list[tuple[object, ...]]) -> None:
    with db.connect(settings().database("features")) as c:
        c.execute(
            f"create table {table} ({columns}) engine = MergeTree order by (exchange, market_type, symbol)"
        )
        c.execute(f"insert into {table} values", rows)


@pytest.fixture(scope="module")
def tables(module_store: Settings) -> Iterator[Settings]:
    """Three instruments, a bucket every 10 s: flow and the size of the best bid say what comes; and an expert who knows."""
    r = np.random.default_rng(4)
    vector, training, sequences, expert = [], [], [], []
    for symbol in ("ONE", "TWO", "TRE"):
        mid = 100.0
        for k in range(BUCKETS):
            flow, noise, book = r.normal(size=3).tolist()
            start, end = NOON + timedelta(seconds=10 * k), NOON + timedelta(seconds=10 * k + 9)
            ret = 1e-5 * (0.8 * flow + 0.8 * book + float(r.normal()))
            mid *= 1 + ret
            key = ("x", "spot", symbol, 170_000_000_000_000 + k, start, end)
            features = (flow, None if k % 13 == 0 else noise, mid, 1.0, k // 40 % 3 - 1)
            cls = 0 if abs(ret) < 0.8e-5 else int(np.sign(ret))
            label = (
                (ret, cls, end + timedelta(seconds=30), ret * 30, None if k > BUCKETS - 9 else 0.2 + k % 2)
                if k < BUCKETS - 3
                else (None,) * 5
            )
            vector.append((*key, *features))
            training.append((*key, *features, *label))
            sequences.append((*key, 1.0, book, 1.0, float(r.normal()), flow))
            if k % 8 == 0 and label[0] is not None:
                expert.append((*key[:4], end, "3", "ann", int(np.sign(ret)), 0, end, f"{symbol}{k}"))
    _create("feature_vector_v1", f"{KEYS}, {FEATURES}", vector)
    _create("training_set", f"{KEYS}, {FEATURES}, {LABELS}", training)
    _create("sequence_inputs_v1", f"{KEYS}, {BOOK}, flow Float64", sequences)
    _create(
        "expert_scores",
        f"{KEYS.rsplit(', bucket_ts_start', 1)[0]}, bucket_ts_end DateTime64(6, 'UTC'), horizon String, expert String, "
        "score Int8, is_hindsight UInt8, decided_at DateTime64(6, 'UTC'), decision_id String",
        expert,
    )
    yield module_store


def run(*arguments: str) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(train_command)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def _card(folder: Path, name: str) -> Card:
    return load_model(folder / "models" / name)[0]


def test_the_ladder_learns_what_is_planted(
    tables: Settings, environment: Environment, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    kinds = ("logistic", "lightgbm", "student")
    chosen = [word for kind in kinds for word in ("--model", kind)]
    with environment(data_dir=str(tmp_path)):
        shown = run(*BASIC, *chosen, "--epochs", "4", "--level-dropout", "0.1")
    for name in (
        "random search",
        "buy and hold",
        "best single feature",
        "logistic",
        "LightGBM",
        "student",
        "stack",
    ):
        assert name in shown, name
    assert "tried forecasts against zero IC: p < 0.001" in shown
    assert "more than luck" in shown
    for kind in kinds:
        card = _card(tmp_path, kind)
        assert card.pooled.ic_low is not None
        assert card.pooled.ic_low > (0.1 if kind == "student" else 0.2), kind
        assert card.parity_max_abs_diff < 1e-4
        evaluation = json.loads((tmp_path / "models" / kind / "evaluation.json").read_bytes())
        assert set(evaluation["regimes"]) == {"calm", "normal", "active"}
        assert evaluation["horizons"]["30s"] == pytest.approx(card.pooled.ic)
    assert (_card(tmp_path, "student").source, _card(tmp_path, "student").window) == ("sequence_inputs", 60)
    rows = {kind: _card(tmp_path, kind).training_rows for kind in kinds}
    assert set(rows.values()) == {3 * (BUCKETS - 3)}
    for variant in ("fp16", "int8"):
        folder = tmp_path / "models" / "student" / variant
        card, _ = load_model(folder)
        assert card.name == f"student-{variant}"
        assert card.version != _card(tmp_path, "student").version
        assert 0 < card.parity_max_abs_diff < 0.1
        assert abs(json.loads((folder / "evaluation.json").read_bytes())["ic_loss"]) < 0.05
        assert f"student, {variant}: " in shown
    page = (tmp_path / "training.html").read_text()
    assert "human expert" in page
    assert "no decision" not in page
    assert "Accuracy against latency" in page


def test_shuffled_labels_are_chance_and_leave_no_model(
    tables: Settings, environment: Environment, tmp_path: Path
) -> None:
    with environment(data_dir=str(tmp_path)):
        shown = run(*BASIC, "--model", "logistic", "--model", "lightgbm", "--shuffle-labels")
    assert "SHUFFLED LABELS" in shown
    (sentence,) = [x for x in shown.splitlines() if "tried forecasts against zero IC" in x]
    assert sentence.endswith("no better than luck")
    assert "0 of 2 features predict" in shown
    assert (tmp_path / "training-shuffled.html").exists()
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "training.html").exists()


def test_one_model_is_trained_alone_under_a_name(
    tables: Settings, environment: Environment, tmp_path: Path
) -> None:
    with environment(data_dir=str(tmp_path)):
        shown = run(
            *BASIC, "--model", "logistic", "--name", "bench", "--scheme", "rolling", "--calibrate", "platt"
        )
        assert "Walk-forward" in shown
        assert not (tmp_path / "training.html").exists()
        card = _card(tmp_path, "bench")
        sizes = {fold.train_rows for fold in card.folds}
        assert max(sizes) <= round(0.4 * card.training_rows)
        assert b"calibration/" in load_model(tmp_path / "models" / "bench")[1]
        with pytest.raises(UserError, match="with one --model only"):
            run(*BASIC, "--name", "all")


def test_rows_weigh_what_their_labels_say_alone(
    tables: Settings, environment: Environment, tmp_path: Path
) -> None:
    one = (*BASIC, "--model", "logistic", "--name")
    with environment(data_dir=str(tmp_path)):
        run(*one, "alike")
        run(*one, "unique", "--weigh", "uniqueness")
        assert _card(tmp_path, "alike").version != _card(tmp_path, "unique").version
    weights = read_dataset("label_cls_3", ["flow"]).weighted().weights
    assert weights is not None
    assert weights.mean() == pytest.approx(1)
    assert len(np.unique(weights)) == 3, "two weights, and their mean where it is not known yet"


def test_the_hour_of_the_day_is_compared_and_not_exported(
    tables: Settings, environment: Environment, tmp_path: Path
) -> None:
    with environment(data_dir=str(tmp_path)):
        run(*BASIC, "--model", "logistic", "--time-of-day", "--tune")
        assert (tmp_path / "training-time-of-day.html").exists()
        assert not (tmp_path / "models").exists()
        with pytest.raises(UserError, match="label_smoothing in"):
            run(*BASIC, "--label-smoothing", "1")


def test_without_pytorch_the_baselines_are_trained_and_it_says_why(
    tables: Settings, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    with environment(data_dir=str(tmp_path)):
        assert "only the baselines are trained: the networks need PyTorch: run `make torch`" in run(
            *BASIC, "--no-compare"
        )
        assert {path.name for path in (tmp_path / "models").iterdir()} == {"logistic", "lightgbm"}
        with pytest.raises(UserError, match="run `make torch`"):
            run(*BASIC, "--model", "student")


def test_a_network_needs_inputs_for_every_row(
    tables: Settings, environment: Environment, tmp_path: Path
) -> None:
    with db.connect(settings().database("features")) as c:
        c.execute("rename table sequence_inputs_v1 to hidden")
        try:
            with environment(data_dir=str(tmp_path)):
                with pytest.raises(UserError, match="sequence_inputs"):
                    run(*BASIC, "--model", "student")
                assert "only the baselines are trained: " in run(*BASIC, "--no-compare")
        finally:
            c.execute("rename table hidden to sequence_inputs_v1")
