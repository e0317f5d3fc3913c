"""Experts' decisions from the CSV file to the JSON lines, on a market whose features and labels are written by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.experts import store
from python_udfs.experts.cli import app
from python_udfs.experts.records import OPTIONAL, REQUIRED, SCORES, parse, read_horizons
from python_udfs.settings import REPOSITORY, Settings, settings
from tests.oracles.experts import Bucket, Entry, Score, scored, seen, summarised
from tests.support import dbt, execute, query

AAA: Final = ("alpha", "spot", "AAAUSDT")
BBB: Final = ("beta", "linear", "BBBUSDT")
EMPTY: Final = ("binance", "spot", "BTCUSDT")
S: Final = 1_000_000
START: Final = 1_767_571_200 * S  # 2026-01-05 00:00:00 UTC
LAG: Final = 120 * S
FEE_BPS: Final = 1
HORIZONS: Final = read_horizons()
KEYS: Final = ("exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end")
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def close(a: float | None, b: float | None) -> bool:
    """Equal but for rounding; None equals None alone."""
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)


def iso(us: int) -> str:
    return (EPOCH + timedelta(microseconds=us)).isoformat()


def buckets(seed: int) -> list[Bucket]:
    """120 buckets of random length: two end in one instant, ten minutes are empty; the last labels are not known."""
    rng = np.random.default_rng(seed)
    gaps = rng.integers(1 * S, 20 * S, 120)
    gaps[40], gaps[80] = 0, 600 * S
    ends = START + np.cumsum(gaps)
    made = []
    for i, end in enumerate(map(int, ends)):
        labels: dict[str, tuple[int | None, float | None, int | None]] = {}
        for h in HORIZONS:
            if h.endswith("s"):
                known: int | None = end + int(h[:-1]) * S
                is_known = end + int(h[:-1]) * S <= ends[-1]
            else:
                is_known = i + int(h) < len(ends)
                known = int(ends[i + int(h)]) if is_known else None
            value = float(rng.normal(scale=1e-3)) if is_known and rng.random() > 0.1 else None
            label_class = int(rng.integers(-1, 2)) if value is not None and rng.random() > 0.1 else None
            labels[h] = known, value, label_class
        spread = None if i % 10 == 3 else float(rng.uniform(0.5, 3))
        made.append(Bucket(1000 + i, end, spread, labels))
    return made


MARKET: Final = {AAA: buckets(1), BBB: buckets(2)}


def contract(model: str) -> dict[str, str]:
    """A model's columns and types, from its yml."""
    [path] = (REPOSITORY / "dbt_project" / "models").rglob(f"{model}.yml")
    [node] = yaml.safe_load(path.read_text())["models"]
    return {c["name"]: c["data_type"] for c in node["columns"]}


def write_market() -> dict[tuple[tuple[str, str, str], int], dict[str, Any]]:
    """feature_vector_v2 and bucket_labels as tables of random numbers; the features, by instrument and bucket."""
    rng = np.random.default_rng(3)
    features = contract("feature_vector")
    types = {"feature_vector_v2": features, "bucket_labels": contract("bucket_labels")}
    for table, columns in types.items():
        listed = ", ".join(f"`{name}` {type_}" for name, type_ in columns.items())
        execute(f"create table {table} ({listed}) engine = MergeTree order by bucket_id", layer="features")
    rows, labels, kept = [], [], {}
    names = [n for n in types["bucket_labels"] if any(n.endswith(f"_{h}") for h in HORIZONS)]
    names = [n for n in names if n.startswith(("label_known_at_", "label_ret_", "label_cls_"))]
    names = [n for n in names if n.removeprefix("label_ret_ps_").removeprefix("label_ret_").removeprefix("label_cls_")
             .removeprefix("label_known_at_") in HORIZONS]  # fmt: skip
    for instrument, made in MARKET.items():
        for b in made:
            row: dict[str, Any] = dict(zip(KEYS[:4], (*instrument, b.bucket_id), strict=True))
            row |= dict.fromkeys(KEYS[4:], EPOCH + timedelta(microseconds=b.end))
            for name, type_ in features.items():
                if name in KEYS:
                    continue
                if "String" in type_:
                    row[name] = str(rng.choice(["on", "off, 'quoted'", ""]))
                elif "Int" in type_:
                    row[name] = int(rng.integers(0, 100))
                else:
                    row[name] = float(rng.normal())
                if type_.startswith("Nullable(") and rng.random() < 0.1:
                    row[name] = None
            row["spread_bps_close"] = b.spread_bps
            row["vpin"] = math.nan
            rows.append([row[name] for name in features])
            kept[instrument, b.bucket_id] = row
            label = [*instrument, b.bucket_id, row["bucket_ts_start"], row["bucket_ts_end"]]
            for name in names:
                h = name.rsplit("_", 1)[-1]
                known, value, label_class = b.labels[h]
                if name.startswith("label_known_at_"):
                    label.append(None if known is None else EPOCH + timedelta(microseconds=known))
                elif name.startswith("label_cls_"):
                    label.append(label_class)
                elif value is not None and not h.endswith("s"):
                    label.append(value / max(((known or 0) - b.end) / S, 1))
                else:
                    label.append(value)
            labels.append(label)
    execute(f"insert into feature_vector_v2 ({db.names(list(features))}) values", rows, layer="features")
    execute(f"insert into bucket_labels ({db.names([*KEYS, *names])}) values", labels, layer="features")
    return kept


def line(  # noqa: PLR0917 - the columns of a file
    expert: str,
    instrument: tuple[str, str, str],
    decided_at: int,
    horizon: str,
    intent: str,
    entered_at: int | None,
    rationale: str = "tape",
    outcome: str = "",
) -> dict[str, str]:
    cells = dict.fromkeys((*REQUIRED, *OPTIONAL), "")
    cells |= dict(zip(("exchange", "market_type", "symbol"), instrument, strict=True))
    cells |= {"expert": expert, "decided_at": iso(decided_at), "intent": intent, "rationale": rationale}
    cells |= {"horizon": horizon if horizon.endswith("s") else f"{horizon} buckets", "outcome": outcome}
    return cells | {"entered_at": "" if entered_at is None else iso(entered_at)}


def edges() -> dict[str, list[dict[str, str]]]:
    """The versions of decisions at the edges, by what is special about them."""
    a = MARKET[AAA]
    known = a[20].labels["30s"][0] or 0
    at = a[20].end

    def one(
        decided_at: int, instrument: tuple[str, str, str] = AAA, name: str = "tape"
    ) -> list[dict[str, str]]:
        return [line("edge", instrument, decided_at, "30s", "buy", decided_at, name)]

    return {
        "at a bucket's end": one(a[10].end),
        "a moment before it": one(a[10].end - 1),
        "two buckets end": one(a[40].end),
        "before the first": one(a[0].end - 5 * S),
        "in the gap": one(a[79].end + 300 * S),
        "as old as may be": one(a[79].end + LAG),
        "a moment older": one(a[79].end + LAG + 1),
        "as soon as may be": one(a[80].end - LAG),
        "after the last": one(a[-1].end + S),
        "no buckets": one(a[10].end, EMPTY),
        "quoted": one(a[12].end, name='he said "buy",\n[bold]then[/] left 卖'),
        "entered when known": [line("edge", AAA, at, "30s", "buy", known)],
        "entered a moment before": [line("edge", AAA, at - 1, "30s", "buy", known - 1)],
        "entered by the clock": [line("edge", AAA, at - 2, "30s", "buy", None)],
        "corrected in time": [
            line("edge", AAA, at - 3, "30s", "buy", at), line("edge", AAA, at - 3, "30s", "sell", at + S),
        ],
        "corrected in hindsight": [
            line("edge", AAA, at - 4, "30s", "buy", at, "first thought"),
            line("edge", AAA, at - 4, "30s", "sell", known + S, "I knew it", "won"),
        ],
    }  # fmt: skip


def crowd() -> list[dict[str, str]]:
    """Two experts at random, at every horizon, some in hindsight."""
    rng = np.random.default_rng(7)
    made = []
    for _ in range(300):
        instrument = AAA if rng.random() < 0.5 else BBB
        market = MARKET[instrument]
        decided = int(rng.integers(market[0].end - 30 * S, market[-1].end + 30 * S))
        entered = decided + int(rng.choice([1, 1, 1, 400])) * int(rng.integers(0, 3 * S))
        horizon, expert = str(rng.choice(HORIZONS)), str(rng.choice(["ann", "bob"]))
        made.append(line(expert, instrument, decided, horizon, str(rng.choice(list(SCORES))), entered))
    return made


def write(path: Path, lines: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as f:
        writer = csv.DictWriter(f, [*REQUIRED, *OPTIONAL])
        writer.writeheader()
        writer.writerows(lines)
    return path


class Scene:
    """What was loaded, and what comes out."""

    def __init__(self, folder: Path) -> None:
        self.features = write_market()
        self.edges = edges()
        self.lines = [*(v for versions in self.edges.values() for v in versions), *crowd()]
        self.file = write(folder / "all.csv", self.lines)
        self.done = CliRunner().invoke(app, ["import", str(self.file)])
        self.again = CliRunner().invoke(app, ["import", str(self.file)])
        store.build()
        self.context = {r["decision_id"]: r for r in query("select * from expert_context")}
        self.scores = {r["decision_id"]: r for r in query("select * from expert_scores")}
        self.versions: dict[str, list[Entry]] = defaultdict(list)
        self.instrument: dict[str, tuple[str, str, str]] = {}
        self.expert: dict[str, str] = {}
        now = int(datetime.now(UTC).timestamp()) * S
        for cells in self.lines:
            d = parse(cells, store.rules())
            assert not isinstance(d, list), d
            entered_at = now if d.entered_at is None else d.entered_at
            self.versions[d.decision_id].append(Entry(d.decided_at, entered_at, SCORES[d.intent], d.horizon))
            self.instrument[d.decision_id] = tuple(d.instrument)
            self.expert[d.decision_id] = d.expert

    def id_of(self, edge: str) -> str:
        d = parse(self.edges[edge][-1], store.rules())
        assert not isinstance(d, list), d
        return d.decision_id

    def expected(self, decision_id: str) -> Score:
        market = MARKET.get(self.instrument[decision_id], [])
        return scored(market, self.versions[decision_id], LAG, FEE_BPS)


@pytest.fixture(scope="module")
def scene(module_store: Settings, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("experts"))


def test_loading_twice_changes_nothing(scene: Scene) -> None:
    assert scene.done.exit_code == 0, scene.done.output
    new = len(scene.versions)
    assert f"{new} decisions, {len(scene.lines) - new} corrections, 0 unchanged" in scene.done.stdout
    assert scene.again.exit_code == 0
    assert f"0 decisions, 0 corrections, {len(scene.lines)} unchanged" in scene.again.stdout
    stored = query(f"select count() as n from {settings().database('serving')}.expert_decisions")
    assert stored == [{"n": len(scene.lines)}]


def test_the_state_is_the_feature_row_as_of_the_decision(scene: Scene) -> None:
    assert scene.context.keys() == scene.versions.keys()
    found = 0
    for decision_id, row in scene.context.items():
        instrument = scene.instrument[decision_id]
        expected = seen(MARKET.get(instrument, []), scene.versions[decision_id][0].decided_at, LAG)
        if expected is None:
            assert (row["bucket_id"], row["bucket_ts_end"], row["state"], row["state_text"]) == (
                None,
                None,
                {},
                {},
            )
            assert row["state_missing"]
            continue
        found += 1
        feature = scene.features[instrument, expected.bucket_id]
        assert (row["bucket_id"], row["bucket_ts_end"]) == (expected.bucket_id, feature["bucket_ts_end"])
        state = {**row["state"], **row["state_text"]}
        assert state.keys() == feature.keys() - set(KEYS)
        assert {k: v for k, v in state.items() if k != "vpin"} == {
            k: feature[k] for k in state if k != "vpin"
        }
        assert math.isnan(state["vpin"])
        assert row["state_missing"] == ""
    assert 200 < found < len(scene.versions)


@pytest.mark.parametrize(
    ("edge", "missing", "bucket", "scored_bucket"),
    [
        ("at a bucket's end", "", 1010, 1010),
        ("a moment before it", "", 1009, 1010),
        ("two buckets end", "", 1040, 1040),
        ("before the first", "before_first_bucket", None, 1000),
        ("in the gap", "too_old", None, None),
        ("as old as may be", "", 1079, None),
        ("a moment older", "too_old", None, None),
        ("as soon as may be", "too_old", None, 1080),
        ("after the last", "", 1119, None),
        ("no buckets", "no_buckets", None, None),
    ],
)
def test_the_edges_of_context_and_score(
    scene: Scene, edge: str, missing: str, bucket: int | None, scored_bucket: int | None
) -> None:
    row, score = scene.context[scene.id_of(edge)], scene.scores[scene.id_of(edge)]
    assert (row["state_missing"], row["bucket_id"]) == (missing, bucket)
    assert score["bucket_id"] == scored_bucket
    assert (score["unscored"] == "no_bucket") == (scored_bucket is None)


def test_scores_equal_the_oracles(scene: Scene) -> None:
    assert scene.scores.keys() == scene.versions.keys()
    for decision_id, row in scene.scores.items():
        e = scene.expected(decision_id)
        assert row["bucket_id"] == e.bucket_id
        assert (row["score"], row["is_hindsight"]) == (e.entry.score, e.hindsight)
        assert close(row["label_return"], e.label_return)
        assert row["label_class"] == e.label_class
        assert close(row["net_return"], e.net)
        assert row["hit"] == (None if e.label_class is None else e.entry.score == e.label_class)


def test_the_summary_equals_the_oracles(scene: Scene) -> None:
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for decision_id in scene.versions:
        e = scene.expected(decision_id)
        groups[scene.expert[decision_id], e.entry.horizon].append(e)
    with db.connect(settings().database("features")) as c:
        for hindsight in (False, True):
            rows = {(r["expert"], r["horizon"]): r for r in store.summary(c, hindsight=hindsight)}
            assert rows.keys() == groups.keys()
            for key, scores in groups.items():
                for name, value in summarised(scores, hindsight=hindsight).items():
                    assert close(rows[key][name], value), (key, name)


def test_hindsight_is_flagged_and_corrections_that_came_too_late_do_not_count(scene: Scene) -> None:
    flags = {edge: scene.scores[scene.id_of(edge)]["is_hindsight"] for edge in scene.edges}
    assert {edge for edge, flag in flags.items() if flag} == {"entered when known", "entered by the clock"}
    in_time = scene.scores[scene.id_of("corrected in time")]
    assert (in_time["intent"], in_time["scored_version"], in_time["versions"]) == ("sell", 2, 2)
    late = scene.scores[scene.id_of("corrected in hindsight")]
    assert (late["intent"], late["rationale"], late["scored_version"]) == ("buy", "first thought", 1)
    assert late["outcome"] == "won"
    assert scene.context[scene.id_of("corrected in hindsight")]["intent"] == "sell"


def test_data_tests_pass(scene: Scene) -> None:
    dbt("test", select="expert_decision_versions expert_context expert_scores expert_summary")


def test_predictions_are_scored_from_the_bucket_that_ends_next(scene: Scene) -> None:
    with db.connect(settings().database("features")) as c:
        found = store.expert_predictions(c, "label_cls_30s")
        expected: dict[tuple[int, str, int, str], tuple[int, str, int]] = {}
        for decision_id in scene.versions:
            e = scene.expected(decision_id)
            if e.entry.horizon != "30s" or e.bucket_id is None or e.hindsight:
                continue
            instrument = scene.instrument[decision_id]
            end = MARKET[instrument][e.bucket_id - 1000].end
            key = end, ":".join(instrument), e.bucket_id, scene.expert[decision_id]
            expected[key] = max(
                expected.get(key, (0, "", 0)), (e.entry.decided_at, decision_id, e.entry.score)
            )
        columns = (found.as_of, found.instrument, found.bucket_id, found.expert)
        assert [tuple(v.item() for v in row) for row in zip(*columns, strict=True)] == sorted(expected)
        assert found.score.tolist() == [expected[key][2] for key in sorted(expected)]
        assert found.score.dtype == np.int8
        with pytest.raises(UserError, match="is no label"):
            store.expert_predictions(c, "label_cls_31s")


def test_export_comes_back_as_it_was(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "tuples.jsonl"
    done = CliRunner().invoke(app, ["export", "--no-build", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(text) for text in out.read_text("utf-8").splitlines()]
    assert CliRunner().invoke(app, ["export", "--no-build"]).stdout == out.read_text("utf-8")
    assert {r["decision_id"] for r in rows} == scene.versions.keys()
    assert [r["decision"]["decided_at"] for r in rows] == sorted(r["decision"]["decided_at"] for r in rows)
    for row in rows:
        score, context = scene.scores[row["decision_id"]], scene.context[row["decision_id"]]
        assert row["rationale"] == score["rationale"]
        assert datetime.fromisoformat(row["decision"]["decided_at"]) == score["decided_at"]
        assert row["decision"]["intent"] == score["intent"]
        assert row["outcome"]["return"] == score["label_return"]
        assert row["outcome"]["net_return"] == score["net_return"]
        features = {**context["state"], **context["state_text"]}
        assert row["state"]["features"] == {k: None if k == "vpin" else v for k, v in features.items()}
    by_id = {r["decision_id"]: r for r in rows}
    assert by_id[scene.id_of("quoted")]["rationale"] == 'he said "buy",\n[bold]then[/] left 卖'
    late = by_id[scene.id_of("corrected in hindsight")]
    assert (late["rationale"], late["outcome"]["reported"]) == ("first thought", "won")
    ann = CliRunner().invoke(app, ["export", "--no-build", "--expert", "ann"]).stdout.splitlines()
    assert len(ann) == sum(e == "ann" for e in scene.expert.values())


def test_commands_show_what_there_is(scene: Scene) -> None:
    listed = CliRunner().invoke(app, ["list", "--expert", "edge", "--history", "--limit", "100"])
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.count("│ 2026-01-05") >= len([v for e in scene.edges.values() for v in e])
    shown = CliRunner().invoke(app, ["score", "--no-build", "--json"])
    rows = [json.loads(text) for text in shown.stdout.splitlines()]
    assert {r["expert"] for r in rows} == {"ann", "bob", "edge"}
    assert "30 s" in CliRunner().invoke(app, ["score", "--no-build", "--hindsight"]).stdout


def test_what_comes_after_a_decision_changes_no_state(scene: Scene) -> None:
    """The last test on the scene: it cuts the features."""
    at = MARKET[AAA][60].end
    cut = f"bucket_ts_end > fromUnixTimestamp64Micro({at}, 'UTC')"
    execute(f"delete from feature_vector_v2 where {cut}", layer="features")
    store.build()
    after = {r["decision_id"]: r for r in query("select * from expert_context")}
    before = [d for d, versions in scene.versions.items() if versions[0].decided_at <= at]
    assert 50 < len(before) < len(scene.versions)
    assert {d: str(after[d]) for d in before} == {d: str(scene.context[d]) for d in before}
    assert any(str(after[d]) != str(scene.context[d]) for d in scene.versions)


@pytest.fixture
def small(store: Settings) -> Settings:
    return store


def test_a_bad_line_keeps_the_whole_file_out_or_goes_to_quarantine(small: Settings, tmp_path: Path) -> None:
    good = line("ann", AAA, START, "30s", "buy", START)
    file = write(
        tmp_path / "mixed.csv", [good, {**good, "intent": "long", "horizon": "7"}, {**good, "intent": "sell"}]
    )
    done = CliRunner().invoke(app, ["import", str(file)])
    assert done.exit_code == 1
    for place in (
        ":3 [intent]: bad_value",
        ":3 [horizon]: unknown_horizon",
        ":4 [entered_at]: conflict: line 2",
    ):
        assert f"{file}{place}" in done.stderr
    assert "2 bad lines: nothing was loaded" in done.stderr
    serving, hot = small.database("serving"), small.database("hot")
    assert query(f"select count() as n from {serving}.expert_decisions") == [{"n": 0}]
    for expected in ("1 decisions, 0 corrections, 0 unchanged", "0 decisions, 0 corrections, 1 unchanged"):
        done = CliRunner().invoke(app, ["import", "--quarantine", str(file)])
        assert done.exit_code == 0, done.output
        assert f"{expected}, 0 duplicate lines, 2 quarantined" in done.stdout
        kept = query(f"select line, field, reason_code, raw from {hot}.quarantine final order by line, field")
        assert [(r["line"], r["field"], r["reason_code"]) for r in kept] == [
            (3, "horizon", "unknown_horizon"), (3, "intent", "bad_value"), (4, "entered_at", "conflict"),
        ]  # fmt: skip
        assert next(csv.reader(io.StringIO(kept[0]["raw"])))[5] == "long"


def test_one_bad_file_does_not_stop_the_next(small: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    good = write(tmp_path / "good.csv", [line("ann", AAA, START, "30s", "buy", START)])
    done = CliRunner().invoke(app, ["import", str(tmp_path / "empty.csv"), str(good)])
    assert done.exit_code == 1
    assert "empty.csv: empty: expected a header" in done.stderr
    assert "1 decisions" in done.stdout


def test_entered_by_hand_and_corrected(small: Settings) -> None:
    words = {"expert": "ann", "instrument": "alpha:spot:AAAUSDT", "horizon": "30 s", "decided-at": iso(START)}

    def add(**more: str) -> str:
        options = [f"--{k}={v}" for k, v in {**words, **more}.items()]
        done = CliRunner().invoke(app, ["add", *options])
        return done.stdout.split(":")[0] if done.exit_code == 0 else str(done.exception)

    assert add(intent="buy", rationale="the bid held") == "entered"
    assert add(intent="buy", rationale="the bid held") == "unchanged"
    assert add(intent="sell", rationale="the bid held") == "corrected"
    assert "intent: bad_value" in add(intent="short", rationale="x")
    assert "expected exchange:market_type:symbol" in add(intent="buy", rationale="x", instrument="BTC")
    rows = query(
        "select toString(intent) as intent, toString(entered_at_source) as source, file "
        f"from {small.database('serving')}.expert_decisions order by entered_at"
    )
    assert [(r["intent"], r["source"], r["file"]) for r in rows] == [
        ("buy", "clock", ""),
        ("sell", "clock", ""),
    ]


def test_without_scores_the_next_step_is_told(small: Settings) -> None:
    with db.connect(small.database("features")) as c:
        for call in (
            lambda: store.summary(c),
            lambda: store.expert_predictions(c, "label_cls_30s"),
            lambda: next(store.tuples(c)),
        ):
            with pytest.raises(UserError, match="run `make build`"):
                call()
