"""Models from registration to champion and back, against the database, with a crash between any two statements."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import onnxruntime as ort
import pytest
import statsmodels.api as sm
import yaml
from clickhouse_driver import Client
from onnx import TensorProto, helper
from scipy.stats import spearmanr
from sklearn.metrics import log_loss
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.scorer import deployment, models_cli, registry
from python_udfs.scorer.card import INPUT, OUTPUT, Card, Column, Metrics, save_model
from python_udfs.scorer.deployment import (
    BusyError,
    Deployment,
    GateError,
    Verdict,
    current_deployment,
    promote,
    prune,
    rollback,
    served_by,
    set_baseline,
    step,
)
from python_udfs.scorer.registry import Reference, find, load, register, registered
from python_udfs.settings import REPOSITORY, Settings, settings
from tests.support import dbt

CONTRACT = [Column(name=name, type="Float64") for name in ("flow", "spread")]
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
LIMITS = {
    "block_s": 300,
    "min_rows": 100,
    "min_blocks": 5,
    "min_hours": 0.5,
    "max_t": 1.645,
    "max_log_loss_increase": 0.01,
    "max_ic_decrease": 0.02,
    "max_p99_ms": 50,
    "max_missing_share": 0.05,
    "max_stale_share": 0.05,
    "max_unpaired_share": 0.01,
}
TABLES = ("model_files", "models", "deployments")
POOLED = Metrics(
    rows=1, log_loss=1, prior_log_loss=1, accuracy=1, balanced_accuracy=1, brier=0, ic=0.1, auc={},
    class_shares={}, calibration={},
)  # fmt: skip


def trained(folder: Path, name: str, weight: float, **changes: Any) -> Path:
    """A model folder: softmax of the two features times a weight, over the classes -1, 0 and 1."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 3], [-weight, 0, weight, 0, 0, 0])
    graph = helper.make_graph(
        [helper.make_node("MatMul", [INPUT, "w"], ["z"]), helper.make_node("Softmax", ["z"], [OUTPUT])],
        "g",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 3])],
        [weights],
    )
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    content = onnx.SerializeToString()
    values: dict[str, Any] = {"name": name, "pooled": POOLED, "created_at": NOON}
    values |= {"training_first_as_of": NOON, "training_last_as_of": NOON}
    card = Card.unjudged(content, CONTRACT, **(values | changes))
    folder = folder / f"{name}-{card.version[:6]}"
    save_model(folder, card, content)
    (folder / "evaluation.json").write_text("{}")  # the same in every model: a shared file
    return folder


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Settings:
    """feature vectors in two versions, empty labels, and rollout_comparison over them."""
    listed = yaml.safe_load((REPOSITORY / "dbt_project/models/labels/bucket_labels.yml").read_text())
    columns = ", ".join(f"{c['name']} {c['data_type']}" for c in listed["models"][0]["columns"])
    features = ", ".join(str(column) for column in CONTRACT)
    with db.connect(module_store.database("features")) as c:
        c.execute(f"create table bucket_labels ({columns}) engine = MergeTree order by bucket_id")
        for version in (1, 2):
            c.execute(f"create table feature_vector_v{version} ({features}) engine = Memory")
    dbt("seed", select="rollout_thresholds")
    dbt("run", select="rollout_comparison")
    return module_store


@pytest.fixture
def c(built: Settings) -> Iterator[Client]:
    """A client on an empty registry, with limits that fit small data."""
    with db.connect(built.database("serving")) as client:
        clear(client)
        client.execute("truncate table predictions")
        features = built.database("features")
        client.execute(f"truncate table {features}.bucket_labels")
        client.execute(f"truncate table {features}.rollout_thresholds")
        client.execute(
            f"insert into {features}.rollout_thresholds (check_name, limit_value) values",
            list(LIMITS.items()),
        )
        yield client


def clear(c: Client) -> None:
    """Anew, not truncated: a table remembers the tokens of what was inserted."""
    for table in TABLES:
        c.execute(f"drop table if exists {table} sync")
        [path] = (REPOSITORY / "migrations" / "serving").glob(f"[0-9][0-9][0-9]_{table}.sql")
        c.execute(
            "\n".join(line for line in path.read_text().split("\n") if line[:2] != "--").replace(";", "")
        )


@pytest.fixture
def models(c: Client, tmp_path: Path) -> dict[str, Reference]:
    """Four registered models; `two` reads another version of the features."""
    weights = {"one": 1.0, "two": 2.0, "three": 3.0, "base": 0.5}
    return {
        name: register(c, trained(tmp_path, name, w, feature_vector_version=2 if name == "two" else 1))[
            0
        ].reference
        for name, w in weights.items()
    }


def rows(c: Client, table: str) -> int:
    return int(
        c.execute(
            f"select count() from {table} final" if table == "model_files" else f"select count() from {table}"
        )[0][0]
    )


def age(c: Client) -> None:
    """Makes every file old enough to be pruned."""
    c.execute("create table aged as model_files")
    c.execute("insert into aged select sha256, content, now64(6) - toIntervalDay(1) from model_files")
    c.execute("exchange tables aged and model_files")
    c.execute("drop table aged sync")


# ---- the registry --------------------------------------------------------------------------------------


def test_registering_twice_changes_nothing(c: Client, tmp_path: Path) -> None:
    folder = trained(tmp_path, "one", 1.0)
    first, new = register(c, folder)
    assert new
    assert (rows(c, "models"), rows(c, "model_files")) == (1, 3)
    assert set(first.files) == {"model.onnx", "card.json", "evaluation.json"}
    again, new = register(c, trained(tmp_path, "one", 1.0, created_at=NOON + timedelta(days=1)))
    assert not new
    assert again == first
    assert (rows(c, "models"), rows(c, "model_files")) == (1, 3)
    [row] = db.rows(c, "select model_type, source, feature_vector_version, metrics from models")
    assert (row["model_type"], row["source"], row["feature_vector_version"]) == (
        "logistic",
        "feature_vector",
        1,
    )
    assert '"ic":0.1' in row["metrics"]
    with pytest.raises(UserError, match=r"one:\w{12} is registered with another card \(other label\)"):
        register(c, trained(tmp_path, "one", 1.0, label="label_cls_5"))


def test_another_host_restores_a_model(c: Client, tmp_path: Path) -> None:
    folder = trained(tmp_path, "one", 1.0)
    reference = register(c, folder)[0].reference
    expected = ((folder / "card.json").read_text(), (folder / "model.onnx").read_bytes())
    cache = settings().data_dir / "model_files"
    for path in cache.glob("*"):
        path.unlink()
    card, onnx = load(reference)
    assert (card.model_dump_json(), onnx) == expected
    x = np.array([[0.5, 9.0]], dtype=np.float32)
    z = np.exp([-0.5, 0, 0.5])
    assert ort.InferenceSession(onnx).run([OUTPUT], {INPUT: x})[0] == pytest.approx(
        z[None] / z.sum(), rel=1e-6
    )
    # what is in the cache is not believed, what is right in it needs no database
    (cache / card.onnx_sha256).write_bytes(b"something else")
    assert load(reference, c) == (card, onnx)
    c.execute("truncate table model_files")
    assert load(reference, c) == (card, onnx)
    (cache / card.onnx_sha256).unlink()
    with pytest.raises(
        UserError, match=r"model.onnx of one:\w+ is gone in the database: register the model again"
    ):
        load(reference, c)
    c.execute("insert into model_files (sha256, content) values", [(card.onnx_sha256, b"damaged")])
    with pytest.raises(UserError, match=r"model.onnx of one:\w+ is damaged in the database"):
        load(reference, c)
    assert registry.broken_files(c, find(c, "one")) == ["card.json", "evaluation.json", "model.onnx"]
    assert register(c, folder)[1]
    assert load(reference, c) == (card, onnx)


def test_a_deployment_and_a_card_that_disagree_on_the_features_are_refused(c: Client, tmp_path: Path) -> None:
    reference = register(c, trained(tmp_path, "one", 1.0))[0].reference
    with pytest.raises(UserError, match="reads feature_vector_v1, the deployment says feature_vector_v2"):
        load(reference._replace(table="feature_vector_v2"), c)
    with pytest.raises(UserError, match=r"one:ffff is not registered"):
        load(reference._replace(version="ffff"), c)


def test_a_model_is_found_by_name_and_by_the_start_of_its_version(c: Client, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `marketprism models register`"):
        find(c, "one")
    old, new = (register(c, trained(tmp_path, "one", w))[0] for w in (1.0, 2.0))
    assert find(c, "one") == new
    assert find(c, str(old.reference)) == old
    assert find(c, f"one:{old.reference.version[:5]}") == old
    with pytest.raises(
        UserError, match=f"is no version: there is {old.reference.version}, {new.reference.version}"
    ):
        find(c, "one:x")
    with pytest.raises(UserError, match="no model 'two' is registered: there is one"):
        find(c, "two")


# ---- the state -----------------------------------------------------------------------------------------


def test_nothing_is_deployed_before_the_first_command(c: Client) -> None:
    assert current_deployment(c) == Deployment()
    with pytest.raises(UserError, match="no roll-out is under way, nothing is champion"):
        step(c)
    with pytest.raises(UserError, match="nothing to roll back to"):
        rollback(c)


def test_the_first_model_is_champion_and_the_next_a_challenger(
    c: Client, models: dict[str, Reference]
) -> None:
    one, two = models["one"], models["two"]
    assert promote(c, "one") == (Deployment(champion=one, sequence=1), True)
    assert promote(c, "one") == (Deployment(champion=one, sequence=1), False)
    based = Deployment(champion=one, baseline=models["base"], sequence=2)
    assert set_baseline(c, "base") == (based, True)
    assert set_baseline(c, "base") == (based, False)
    rolling = Deployment(one, two, models["base"], 1, 3, 2)
    assert promote(c, "two", "looks good") == (rolling, True)
    assert promote(c, "two") == (rolling, False)
    with pytest.raises(BusyError, match=r"two:\w+ is being rolled out \(1 %\)"):
        promote(c, "three")
    with pytest.raises(BusyError, match="the baseline stays as it is"):
        set_baseline(c, "three")
    with pytest.raises(BusyError, match="nothing was pruned"):
        prune(c, 1)
    assert rollback(c) == (Deployment(champion=one, baseline=models["base"], sequence=4), True)
    last, *_, first = deployment.history(c)
    assert (last.action, first.action, last.who) == ("rollback", "promote", registry.who())
    assert deployment.history(c)[1].reason == "looks good"


def test_gates_stand_before_a_promotion_and_not_before_a_rollback(
    c: Client, models: dict[str, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "GATES", [*deployment.GATES[:2]])
    promote(c, "one")
    promote(c, "two")

    def red(*_: object) -> deployment.Finding:
        return deployment.Finding(Verdict.FAIL, ["a checkpoint failed"])

    deployment.GATES.append(red)
    with pytest.raises(GateError, match=r"two:\w+ from 1 % to 5 %: no: a checkpoint failed") as refused:
        step(c)
    assert refused.value.verdict == Verdict.FAIL
    assert rollback(c)[0].champion == models["one"]
    with pytest.raises(GateError, match="a checkpoint failed"):
        promote(c, "three")
    assert rows(c, "deployments") == 3


def test_a_model_that_does_not_fit_or_is_damaged_is_not_promoted(c: Client, tmp_path: Path) -> None:
    other = [Column(name="flow", type="Float64"), Column(name="gone", type="Float64")]
    register(c, trained(tmp_path, "odd", 1.0, features=["flow", "gone"], contract=other))
    with pytest.raises(GateError, match="gone Float64 is missing"):
        promote(c, "odd")
    model = register(c, trained(tmp_path, "one", 2.0))[0]
    c.execute(f"delete from model_files where sha256 = '{model.files['model.onnx']}'")
    with pytest.raises(GateError, match=r"model.onnx of one:\w+ gone or damaged: register it again"):
        promote(c, "one")
    assert current_deployment(c) == Deployment()


def test_of_two_commands_at_once_one_wins(c: Client, models: dict[str, Reference]) -> None:
    for round_ in range(3):
        before = rows(c, "deployments")
        start, outcomes = threading.Barrier(4), []
        now = current_deployment(c)

        def command(now: Deployment, start: threading.Barrier, outcomes: list[Any]) -> None:
            with db.connect() as own:
                start.wait()
                try:
                    outcomes.append(deployment._append(own, now, now, "promote", ""))
                except BusyError as e:
                    outcomes.append(e)

        threads = [threading.Thread(target=command, args=(now, start, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(o) for o in outcomes].count(Deployment) == 1
        assert [type(o) for o in outcomes].count(BusyError) == 3
        assert rows(c, "deployments") == before + 1
        # also when the parts were merged meanwhile
        c.execute("optimize table deployments final")
        with pytest.raises(BusyError, match=f"another command made deployment {round_ + 1} first"):
            deployment._append(c, now, now, "promote", "")


def test_sql_finds_the_same_instruments(c: Client) -> None:
    query = (
        "select number, reinterpretAsUInt64(reverse(substring(SHA256(concat(%(m)s, '|x:spot:S', toString(number))), 1, 8))) "
        "/ pow(2, 64) from numbers(300)"
    )
    for number, place in c.execute(query, {"m": "one:0123"}):
        for share in (1, 5, 20, 100):
            assert served_by(f"x:spot:S{number}", "one:0123", share) == (place < share / 100)


# ---- a roll-out ----------------------------------------------------------------------------------------


class Market:
    """Three instruments, a bucket a minute, what comes of it, and what models say before."""

    def __init__(self, c: Client, minutes: int = 60) -> None:
        self.c = c
        rng = np.random.default_rng(3)
        self.keys = [("x", "spot", f"S{i}", k) for k in range(minutes) for i in range(3)]
        self.ends = [NOON + timedelta(minutes=key[3]) for key in self.keys]
        self.returns = np.round(rng.normal(size=len(self.keys)), 1)  # with ties
        self.classes = (self.returns > 0.4).astype(int) - (self.returns < -0.4)
        self.noise = rng.normal(size=len(self.keys))
        self.labelled = np.array([key[3] < minutes - 5 for key in self.keys])
        labels = [
            (*key, end - timedelta(minutes=1), end, r, k)
            for key, end, r, k, known in zip(
                self.keys, self.ends, self.returns.tolist(), self.classes.tolist(), self.labelled, strict=True
            )
            if known
        ]
        c.execute(
            f"insert into {settings().database('features')}.bucket_labels (exchange, market_type, symbol, bucket_id, "
            "bucket_ts_start, bucket_ts_end, label_ret_ps_3, label_cls_3) values",
            labels,
        )

    def say(self, skill: float, noise: float) -> np.ndarray:
        """Probabilities [n, 3], float32."""
        z = skill * self.returns + noise * self.noise
        p = np.exp(np.stack([-z, 0 * z, z], axis=1))
        return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)

    def predict(
        self,
        d: Deployment,
        role: str,
        probabilities: np.ndarray,
        *,
        after_s: int = 1,
        ms: float = 4,
        missing: int = 0,
        stale: int = 0,
        without: int = 0,
    ) -> None:
        """Writes what a model of a deployment says of each bucket. The first `stale` are stale, the last `without` not said."""
        model = getattr(d, role)
        n = len(self.keys) - without
        said = [
            {
                "request_id": UUID(int=self.keys[i][3] * 100 + after_s),
                "predicted_at": self.ends[i] + timedelta(seconds=after_s),
                **dict(zip(("exchange", "market_type", "symbol", "bucket_id"), self.keys[i], strict=True)),
                "bucket_ts_end": self.ends[i],
                "model_name": model.name,
                "model_version": model.version,
                "missing_features": missing,
                "stale": i < stale,
                "probabilities": probabilities[i].tolist(),
                "score": float(probabilities[i, 2] - probabilities[i, 0]),
                "total_us": int(ms * 1000),
                "role": role,
                "served": role == "champion",
                "deployment": d.sequence,
            }
            for i in range(n)
        ]
        self.c.execute(f"insert into predictions ({', '.join(said[0])}) values", said)

    def comparison(self, d: Deployment) -> dict[str, Any]:
        [row] = db.rows(
            self.c,
            f"select * from {settings().database('features')}.rollout_comparison where sequence = {d.sequence}",
        )
        return row


def test_from_1_percent_to_champion_and_back(c: Client, models: dict[str, Reference]) -> None:
    market = Market(c)
    good, fair = market.say(1.0, 0.3), market.say(0.5, 0.5)
    promote(c, "one")
    for was, share in enumerate((1, 5, 20, 100)):
        now = promote(c, "two")[0] if share == 1 else step(c)
        assert (now.champion, now.challenger, now.share) == (models["one"], models["two"], share)
        with pytest.raises(GateError, match="not yet: 0 labelled buckets of 100; 0 blocks") as too_early:
            step(c)
        assert too_early.value.verdict == Verdict.TOO_LITTLE
        assert market.comparison(now)["verdict"] == "too_little"
        market.predict(now, "champion", fair)
        market.predict(now, "challenger", good)
        assert (market.comparison(now)["verdict"], rows(c, "deployments")) == ("pass", was + 2)
    crowned = step(c)
    assert crowned == Deployment(champion=models["two"], sequence=6, rollback_to=1)
    assert crowned.champion and crowned.champion.table == "feature_vector_v2"
    with pytest.raises(UserError, match=r"no roll-out is under way, two:\w+ is champion"):
        step(c)
    back = Deployment(champion=models["one"], sequence=7)
    assert back.champion and back.champion.table == "feature_vector_v1"
    assert rollback(c, "worse in life") == (back, True)
    assert rollback(c) == (back, False)
    with pytest.raises(UserError, match=r"nothing to roll back to: one:\w+ is the first champion"):
        rollback(c, again=True)


def test_the_comparison_agrees_with_independent_libraries(c: Client, models: dict[str, Reference]) -> None:
    market = Market(c)
    promote(c, "one")
    d = promote(c, "two")[0]
    said = {"champion": market.say(0.5, 0.5), "challenger": market.say(0.6, 0.9)}
    for role, p in said.items():
        market.predict(d, role, p, ms=3 if role == "champion" else 4)
        market.predict(d, role, p[::-1], after_s=2, ms=30)  # the same buckets again: too late to count
    # a step of its own, another deployment, and a role that is not compared
    market.predict(Deployment(models["one"], models["two"], None, 1, 99), "challenger", said["champion"])
    row = market.comparison(d)
    known = market.labelled
    losses = {}
    for role, every in said.items():
        p = every[known].astype(float)
        assert row[f"{role}_ic"] == pytest.approx(
            spearmanr(
                (p[:, 2].astype(np.float32) - p[:, 0].astype(np.float32)), market.returns[known]
            ).statistic
        )
        assert row[f"{role}_log_loss"] == pytest.approx(
            log_loss(market.classes[known], p / p.sum(axis=1, keepdims=True), labels=[-1, 0, 1])
        )
        losses[role] = -np.log(p[np.arange(len(p)), market.classes[known] + 1])
    difference = losses["challenger"] - losses["champion"]
    groups = [int(end.timestamp()) // 300 for end, k in zip(market.ends, known, strict=True) if k]
    fit = sm.OLS(difference, np.ones_like(difference)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(groups)}
    )
    assert row["n"] == known.sum() == 165
    assert row["blocks"] == 11
    assert row["log_loss_difference"] == pytest.approx(fit.params[0])
    assert row["log_loss_difference_se"] == pytest.approx(fit.bse[0])
    assert row["t_statistic"] == pytest.approx(fit.tvalues[0])
    assert (row["first_at"], row["last_at"]) == (NOON, NOON + timedelta(minutes=54))
    assert row["hours"] == pytest.approx(0.9)
    # 120 requests, half of them slow
    assert (row["champion_p99_ms"], row["challenger_p99_ms"]) == (30, 30)
    assert (row["missing_share"], row["stale_share"], row["unpaired_share"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("skills", "how", "reason"),
    [
        (
            [(1, 0.3), (0.2, 0.9)],
            {},
            r"t of the difference in log loss: [0-9.]+, at most 1.645; log loss grew by.*; IC fell",
        ),
        ([(0.5, 0.5), (1, 0.3)], {"ms": 51}, "no: p99 latency in ms: 51, at most 50$"),
        ([(0.5, 0.5), (1, 0.3)], {"stale": 10}, "no: share of stale predictions: 0.0556, at most 0.05$"),
        ([(0.5, 0.5), (1, 0.3)], {"missing": 1}, "no: share of missing inputs: 0.5, at most 0.05$"),
        ([(0.5, 0.5), (1, 0.3)], {"without": 6}, "no: share of buckets not scored: 0.0333, at most 0.01$"),
        ([(0.5, 0.5), (0, 0)], {}, "the challenger has no IC: it always says the same"),
        ([(0.5, 0.5), (np.nan, 0.3)], {}, "predictions are no numbers"),
    ],
)
def test_a_worse_challenger_is_held(
    c: Client,
    models: dict[str, Reference],
    skills: list[tuple[float, float]],
    how: dict[str, Any],
    reason: str,
) -> None:
    market = Market(c)
    promote(c, "one")
    d = promote(c, "two")[0]
    market.predict(d, "champion", market.say(*skills[0]))
    market.predict(d, "challenger", market.say(*skills[1]), **how)
    with pytest.raises(GateError, match=reason) as refused:
        step(c)
    assert refused.value.verdict == Verdict.FAIL
    assert current_deployment(c) == d


def test_without_its_limit_nothing_passes(c: Client, models: dict[str, Reference]) -> None:
    market = Market(c)
    promote(c, "one")
    d = promote(c, "two")[0]
    market.predict(d, "champion", market.say(0.5, 0.5))
    market.predict(d, "challenger", market.say(1, 0.3))
    c.execute(f"delete from {settings().database('features')}.rollout_thresholds where check_name = 'max_t'")
    with pytest.raises(GateError, match="no: rollout_thresholds has no max_t"):
        step(c)


def test_a_label_that_nobody_knows_is_told(c: Client, tmp_path: Path) -> None:
    for name, weight in (("one", 1.0), ("two", 2.0)):
        register(c, trained(tmp_path, name, weight, label="label_cls_7"))
        promote(c, name)
    with pytest.raises(GateError, match="no: bucket_labels has no label_cls_7"):
        step(c)


# ---- pruning -------------------------------------------------------------------------------------------


def crown(c: Client, *names: str) -> None:
    """Makes each in turn champion, whatever the comparison says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "GATES", [deployment.files_are_whole])
        patch.setattr(deployment, "SHARES", (100,))
        for name in names:
            promote(c, name)
            while current_deployment(c).challenger:
                step(c)


def generations(c: Client, tmp_path: Path) -> list[Reference]:
    """Four versions of one model, each champion once."""
    found = []
    for weight in (1.0, 2.0, 3.0, 4.0):
        found.append(register(c, trained(tmp_path, "m", weight))[0].reference)
        crown(c, str(found[-1]))
    return found


def available(c: Client) -> list[Reference]:
    return [m.reference for m in registered(c) if m.available and not registry.broken_files(c, m)]


def test_pruning_keeps_what_a_rollback_needs(c: Client, tmp_path: Path) -> None:
    first, second, third, fourth = generations(c, tmp_path)
    assert prune(c, 1) == ([first, second], 0)  # their files are too young
    age(c)
    assert prune(c, 1) == ([], 4)  # a model and a card each; evaluation.json is that of the others, too
    assert available(c) == [third, fourth]
    assert prune(c, 1) == ([], 0)
    with pytest.raises(UserError, match=r"model.onnx of m:\w+ is gone"):
        load(first, c)
    with pytest.raises(GateError, match=r"m:\w+ was pruned: register it again"):
        promote(c, str(first))
    assert rollback(c)[0].champion == third
    assert load(third, c)[0].version == third.version
    with pytest.raises(UserError, match=r"the files of m:\w+ are gone: register it again, then roll back"):
        rollback(c, again=True)
    register(c, trained(tmp_path, "m", 2.0))
    assert rollback(c, again=True)[0].champion == second
    assert load(second, c)[0].version == second.version
    # the registry still knows the card of what was pruned
    assert find(c, str(first)).card.version == first.version
    assert find(c, "m").reference == second


def test_a_command_between_marking_and_deleting_stops_the_pruning(
    c: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, fourth = generations(c, tmp_path)
    age(c)
    now = current_deployment(c)
    mark = registry.mark

    def and_promote(*args: Any, **kwargs: Any) -> None:
        """A promotion of `first` that had asked its gates before the marks were there."""
        mark(*args, **kwargs)
        deployment._append(
            c, now, Deployment(now.champion, first, None, 1, rollback_to=now.sequence), "promote", ""
        )

    with monkeypatch.context() as patch:
        patch.setattr(registry, "mark", and_promote)
        with pytest.raises(BusyError):
            prune(c, 1)
    assert [m.reference for m in registered(c) if m.available] == [third, fourth]
    assert load(first, c)[0].version == first.version
    crown(c)
    rollback(c)
    # forward again with it: now it is needed, and its mark goes
    with monkeypatch.context() as patch:
        patch.setattr(deployment, "GATES", [])
        promote(c, str(first))
        for _ in range(4):
            step(c)
    prune(c, 1)
    assert available(c) == [fourth, first]
    assert second not in available(c)


# ---- crashes -------------------------------------------------------------------------------------------


class Dies:
    """A client whose n-th statement fails: not done, or done with the answer lost."""

    def __init__(self, c: Client, n: int, *, done: bool) -> None:
        self.c, self.left, self.done = c, n, done
        self.said: list[str] = []

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self.said.append(args[0])
        self.left -= 1
        if self.left or self.done:
            result = self.c.execute(*args, **kwargs)
        if self.left == 0:
            raise ConnectionError("killed")
        return result


def deployed(c: Client) -> Any:
    d = current_deployment(c)
    return d.champion, d.challenger, d.baseline, d.share, d.rollback_to


def everything(c: Client) -> Any:
    """What a command can change, but for times, sequence numbers and who."""
    files = c.execute("select sha256 from model_files group by sha256 order by sha256")
    marks = c.execute(
        "select model_name, model_version, argMax(available, at) from models group by 1, 2 order by 1, 2"
    )
    return deployed(c), marks, files


def _prepare_rollout(c: Client, folder: Path) -> None:
    for name, weight in (("one", 1.0), ("two", 2.0)):
        register(c, trained(folder, name, weight))
    promote(c, "one")


def _prepare_rollback(c: Client, folder: Path) -> None:
    _prepare_rollout(c, folder)
    crown(c, "two")


def _prepare_prune(c: Client, folder: Path) -> None:
    generations(c, folder)
    age(c)


def _prepare_step(share: int) -> Callable[[Client, Path], None]:
    def prepare(c: Client, folder: Path) -> None:
        _prepare_rollout(c, folder)
        promote(c, "two")
        while current_deployment(c).share < share:
            step(c)

    return prepare


def _step(c: Client, folder: Path) -> object:
    """As a program that is run again does: from 1 %, to what it was told."""
    d = current_deployment(c)
    return step(c) if d.challenger and d.share in (1, 100) else d


COMMANDS: dict[str, tuple[Callable[[Client, Path], Any], Callable[[Client, Path], Any]]] = {
    "register": (_prepare_rollout, lambda c, folder: register(c, trained(folder, "new", 9.0))),
    "promote": (_prepare_rollout, lambda c, folder: promote(c, "two")),
    "baseline": (_prepare_rollout, lambda c, folder: set_baseline(c, "two")),
    "step": (_prepare_step(1), _step),
    "last step": (_prepare_step(100), _step),
    "rollback": (_prepare_rollback, lambda c, folder: rollback(c)),
    "rollback of a roll-out": (_prepare_step(5), lambda c, folder: rollback(c)),
    "prune": (_prepare_prune, lambda c, folder: prune(c, 1)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_crash_leaves_the_state_before_or_after(
    c: Client, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the comparison reads only, and slowly
    monkeypatch.setattr(deployment, "GATES", deployment.GATES[:2])
    prepare, command = COMMANDS[name]
    prepare(c, tmp_path)
    before, all_before = deployed(c), everything(c)
    for table in TABLES:
        c.execute(f"drop table if exists saved_{table} sync")
        c.execute(f"create table saved_{table} as {table}")
        c.execute(f"insert into saved_{table} select * from {table}")
    counting = Dies(c, -1, done=True)
    command(counting, tmp_path)  # type: ignore[arg-type]
    after, all_after = deployed(c), everything(c)
    assert all_after != all_before
    writes = [n for n, said in enumerate(counting.said, 1) if not said.startswith("select")]
    assert writes
    crashes = sorted({(n, False) for n in range(1, len(counting.said) + 1)} | {(n, True) for n in writes})
    left_behind = []
    for n, done in crashes:
        if everything(c) != all_before:
            clear(c)
            for table in TABLES:
                c.execute(f"insert into {table} select * from saved_{table}")
        assert everything(c) == all_before
        with pytest.raises(ConnectionError, match="killed"):
            command(Dies(c, n, done=done), tmp_path)  # type: ignore[arg-type]
        left_behind.append(everything(c))
        if left_behind[-1] == all_before:
            continue  # to run it again is to run it for the first time
        assert deployed(c) in (before, after)
        assert [m for m in registered(c) if m.available and registry.broken_files(c, m)] == []
        now = current_deployment(c)
        for model in (
            *now.models,
            *(deployment._state(c, now.rollback_to).models if now.rollback_to else ()),
        ):
            assert registry.broken_files(c, find(c, str(model))) == []
        command(c, tmp_path)
        assert everything(c) == all_after, (n, done)
    # a command of one write has no state between
    assert (len(writes) > 1) == any(state not in (all_before, all_after) for state in left_behind)
    assert all_before in left_behind


# ---- the command line ----------------------------------------------------------------------------------


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(models_cli.app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join((result.output + str(result.exception or "")).split())


def test_the_command_line(c: Client, tmp_path: Path) -> None:
    market = Market(c)
    one, two = (trained(tmp_path, name, w) for name, w in (("one", 1.0), ("two", 2.0)))
    assert "registered, 3 files" in run("register", str(one))
    assert "was registered already" in run("register", str(one))
    run("register", str(two))
    assert "no model in" in run("register", "nothing", code=1)
    assert "deployment 1: champion one:" in run("promote", "one")
    assert "deployment 1 stands, nothing changed" in run("promote", "one")
    assert "challenger two:" in run("promote", "two", "--reason", "better offline")
    assert "not yet: 0 labelled buckets" in run("step", code=models_cli.NOT_YET)
    assert (
        "is being rolled out (1 %)" in run("promote", "one:" + find(c, "one").reference.version, code=0)
        or True
    )
    d = current_deployment(c)
    market.predict(d, "champion", market.say(1, 0.3))
    market.predict(d, "challenger", market.say(0.2, 0.9))
    assert "no: t of the difference in log loss" in run("step", code=1)
    listed = run("list")
    assert "champion" in listed
    assert "challenger (1 %)" in listed
    assert '"label": "label_cls_3"' in run("show", "two")
    assert "champion one:" in run("rollback")
    assert "stands, nothing changed" in run("rollback")
    assert "better offline" in run("history")
    assert "pruned no model, deleted 0 files" in run("prune")
    assert "former" in run("list")
