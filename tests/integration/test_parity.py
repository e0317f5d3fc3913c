"""Online/offline parity: what the scorer read is what an as-of rebuild reads, and a feature that is not is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Final

import numpy as np
import pytest
import yaml

from python_udfs.scorer.card import KEYS, Column
from python_udfs.scorer.scorer import Instrument, Scorer
from python_udfs.settings import REPOSITORY, Settings
from tests.scoring import NOON, bucket, create, make_model
from tests.support import dbt, execute, query

Environment = Callable[..., AbstractContextManager[None]]
SERVING: Final = REPOSITORY / "dbt_project" / "models" / "serving"
WINDOW: Final = 3
STEPS: Final = 12
SECOND: Final = timedelta(seconds=1)
RELATIONS: Final = (("feature_vector", 1), ("feature_vector", 2), ("sequence_inputs", 1))
INSTRUMENTS: Final = [
    Instrument("x", "spot", "A"),
    Instrument("x", "linear", "A"),
    Instrument("y", "spot", "B"),
]


def contract(name: str, version: int) -> list[Column]:
    """The features of a relation as its yml says; a version may leave some out."""
    [model] = yaml.safe_load((SERVING / f"{name}.yml").read_text())["models"]
    listed = next((v for v in model["versions"] if v["v"] == version), {}).get("columns", [])
    names = [c["name"] for c in model["columns"]]
    for entry in listed:
        if "include" in entry:
            excluded = entry.get("exclude", [])
            of_all = entry["include"] in ("all", "*")
            names = [n for n in names if n not in excluded] if of_all else entry["include"]
    types = {c["name"]: c["data_type"] for c in model["columns"]}
    return [Column(name=n, type=types[n]) for n in names if n not in KEYS]


def value(rng: np.random.Generator, column: Column) -> Any:
    if column.type.startswith("Nullable"):
        return None if rng.random() < 0.02 else value(rng, Column(name="", type=column.type[9:-1]))
    if column.type.startswith("Float"):
        return float(
            rng.choice([rng.normal(), 0.1, -0.0, 1e300, float("inf"), float("nan")], p=[0.9, *[0.02] * 5])
        )
    if "String" in column.type:
        return "word"
    return int(rng.integers(0, 2 if column.type == "Bool" else 100))


@pytest.fixture(scope="module")
def scored(
    module_store: Settings, tmp_path_factory: pytest.TempPathFactory, environment: Environment
) -> Iterator[None]:
    """The public relations filled by hand; a model of each has scored."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("models")
    contracts = {relation: contract(*relation) for relation in RELATIONS}
    for (name, version), columns in contracts.items():
        create(columns, f"{name}_v{version}")
        rows = []
        for i, instrument in enumerate(INSTRUMENTS):
            for k in range(STEPS):
                # the second instrument is silent for 90 minutes after its sixth bucket
                silence = timedelta(minutes=90) if i == 1 and k > 5 else timedelta()
                row = bucket(instrument, NOON + 2 * k * SECOND + silence)[:6]
                rows.append((*row, *(value(rng, column) for column in columns)))
        execute(f"insert into {name}_v{version} values", rows, layer="features")
    first, second, sequence = (
        [c for c in columns if not c.type.startswith("LowCardinality")] for columns in contracts.values()
    )
    assert len(second) > len(first) > 20
    few, steps = second[3:40:3], sequence[1:50:4]
    models = [
        make_model(folder / "one", [rng.normal(size=(len(first), 3))], features=first),
        make_model(folder / "few", [rng.normal(size=(len(few), 3))], features=few, version=2),
        make_model(
            folder / "window",
            [rng.normal(size=(WINDOW * len(steps), 3))],
            features=steps,
            source="sequence_inputs",
            window=WINDOW,
        ),
    ]
    for model in models:
        with Scorer(model) as scorer:
            for k in range(STEPS):
                for later in (timedelta(), timedelta(minutes=90)):
                    scorer.score(as_of=NOON + 2 * k * SECOND + later)
    dbt("run", select="feature_parity_rows feature_parity", parity_lookback_s=86400)
    yield


def differing() -> list[tuple[Any, ...]]:
    rows = query(
        "select model_name, feature, mismatches, missing, extra, first_differing_instrument from feature_parity "
        "where parity_share < 1 order by model_name, feature"
    )
    return [tuple(r.values()) for r in rows]


@pytest.fixture
def change(scored: None) -> Iterator[Callable[[str, str], None]]:
    """Runs mutations of two of the relations; puts them back as they were."""
    tables = ("feature_vector_v2", "sequence_inputs_v1")
    for table in tables:
        execute(f"create table kept_{table} as {table}", layer="features")
        execute(f"insert into kept_{table} select * from {table}", layer="features")
    yield lambda table, sql: execute(
        f"alter table {table} {sql} settings mutations_sync = 2", layer="features"
    )
    for table in tables:
        execute(f"exchange tables {table} and kept_{table}", layer="features")
        execute(f"drop table kept_{table} sync", layer="features")


def a_feature(model: str) -> str:
    """One that this model reads."""
    [row] = query(f"select features[4] as f from feature_parity_rows where model_name = '{model}' limit 1")
    return str(row["f"])


def test_parity_is_whole_on_clean_data(scored: None) -> None:
    assert differing() == []
    rows = query(
        "select model_name, relation, uniqExact(feature) as features, groupUniqArray(compared) as compared, "
        "max(largest_difference) as difference from feature_parity group by all order by model_name"
    )
    buckets = query(
        "select model_name, uniqExact(feature_hash) as n from feature_parity_rows group by 1 order by 1"
    )
    n = {r["model_name"]: r["n"] for r in buckets}
    assert [tuple(r.values()) for r in rows] == [
        ("few", "feature_vector_v2", 13, [n["few"]], 0),
        ("one", "feature_vector_v1", len(contract("feature_vector", 1)), [n["one"]], 0),
        ("window", "sequence_inputs_v1", 13, [n["window"] * WINDOW], 0),
    ]
    assert n["few"] == n["one"] == len(INSTRUMENTS) * STEPS


def test_the_values_are_those_of_the_inputs(scored: None) -> None:
    """Parity is not that of nothing with nothing: values are there, missing ones too, and windows cut by a silence."""
    [row] = query(
        "select countIf(not isNaN(v)) as values, countIf(isNaN(v)) as gaps "
        "from feature_parity_rows array join values_now as v where rows_back = 0"
    )
    assert row["values"] > 5 * row["gaps"] > 0
    cut = query(
        "select uniqExact(bucket_id) as n from feature_parity_rows where model_name = 'window' "
        "and market_type = 'linear' and rows_back = 1 and arrayAll(x -> isNaN(x), values_now)"
    )
    assert cut == [{"n": 2}], "the first bucket and the one after the silence have none before them"


@pytest.mark.parametrize(
    ("model", "table", "mismatches"),
    # in windows of three the row is the last one, the middle one, the first one
    [("few", "feature_vector_v2", 1), ("window", "sequence_inputs_v1", 3)],
)
def test_a_tampered_feature_is_named(
    change: Callable[[str, str], None], model: str, table: str, mismatches: int
) -> None:
    feature = a_feature(model)
    target = query(
        f"select bucket_id from {table} where abs({feature}) < 1000 and exchange = 'y' "
        "order by bucket_id limit 1 offset 4"
    )[0]["bucket_id"]
    change(table, f"update {feature} = {feature} + 1 where exchange = 'y' and bucket_id = {target}")
    assert differing() == [(model, feature, mismatches, 0, 0, "y:spot:B")]
    [row] = query(f"select * from feature_parity where feature = '{feature}' and model_name = '{model}'")
    assert row["first_differing_bucket_id"] == target
    assert row["largest_difference"] == pytest.approx(1, rel=1e-4)
    assert row["parity_share"] == 1 - mismatches / row["compared"]


def test_null_and_not_null_are_told_apart(change: Callable[[str, str], None]) -> None:
    feature = a_feature("window")
    there = f"isFinite(toFloat32(ifNull({feature}, nan)))"
    [n] = query(f"select countIf({there}) as there, countIf(not {there}) as gaps from sequence_inputs_v1")
    change("sequence_inputs_v1", f"update {feature} = if({there}, null, 7) where true")
    [(model, name, mismatches, missing, extra, _)] = differing()
    assert (model, name, mismatches) == ("window", feature, 0)
    # a row stands in as many windows as there are rows from it on, at most three
    assert n["gaps"] <= missing <= 3 * n["gaps"]
    assert n["there"] < extra < 3 * n["there"]


def test_a_row_that_is_gone_is_extra_in_every_feature(change: Callable[[str, str], None]) -> None:
    [last] = query("select max(bucket_id) as b from feature_vector_v2 where exchange = 'y'")
    change("feature_vector_v2", f"delete where exchange = 'y' and bucket_id = {last['b']}")
    found = differing()
    assert {row[0] for row in found} == {"few"}
    assert len(found) >= 10
    assert {row[2:5] for row in found} == {(0, 0, 1)}


def test_a_row_that_went_shifts_the_window(change: Callable[[str, str], None]) -> None:
    """An as-of rebuild of a window is of the last rows there are now, not of those that were there."""
    [row] = query(
        "select bucket_id from sequence_inputs_v1 where exchange = 'y' order by bucket_id limit 1 offset 5"
    )
    change("sequence_inputs_v1", f"delete where exchange = 'y' and bucket_id = {row['bucket_id']}")
    assert {row[0] for row in differing()} == {"window"}
    shifted = query(
        "select bucket_id, rows_back from feature_parity_rows where model_name = 'window' and exchange = 'y' "
        "and arrayExists((x, y) -> isNaN(x) != isNaN(y) or x != y and not isNaN(x), read_values, values_now) "
        f"and bucket_id > {row['bucket_id']} order by bucket_id, rows_back"
    )
    assert [r["rows_back"] for r in shifted] == [1, 2, 2]
