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
INSTRUMENTS: Final = [
    Instrument("x", "spot", "A"),
    Instrument("x", "linear", "A"),
    Instrument("y", "spot", "B"),
]


def contract(version: int) -> list[Column]:
    """The features of feature_vector as its yml says; version 1 leaves some out."""
    [model] = yaml.safe_load((SERVING / "feature_vector.yml").read_text())["models"]
    listed = next((v for v in model["versions"] if v["v"] == version), {}).get("columns", [])
    names = [c["name"] for c in model["columns"]]
    for entry in listed:
        if "include" in entry:
            excluded = entry.get("exclude", [])
            names = (
                [n for n in names if n not in excluded]
                if entry["include"] in ("all", "*")
                else entry["include"]
            )
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
    """Both versions of the vector filled by hand; a model of one row of each, and one of a window, have scored."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("models")
    contracts = {version: contract(version) for version in (1, 2)}
    for version, columns in contracts.items():
        create(columns, f"feature_vector_v{version}")
        rows = []
        for i, instrument in enumerate(INSTRUMENTS):
            for k in range(STEPS):
                # the second instrument is silent for 90 minutes after its sixth bucket
                silence = timedelta(minutes=90) if i == 1 and k > 5 else timedelta()
                row = bucket(instrument, NOON + 2 * k * SECOND + silence)[:6]
                rows.append((*row, *(value(rng, column) for column in columns)))
        execute(f"insert into feature_vector_v{version} values", rows, layer="features")
    numbers = {
        version: [
            c for c in columns if not c.type.startswith(("Array", "LowCardinality", "String", "DateTime"))
        ]
        for version, columns in contracts.items()
    }
    assert len(numbers[2]) > len(numbers[1]) > 20
    few = numbers[2][3:40:3]
    models = [
        make_model(folder / "one", [rng.normal(size=(len(numbers[1]), 3))], features=numbers[1]),
        make_model(folder / "few", [rng.normal(size=(len(few), 3))], features=few, version=2),
        make_model(
            folder / "window",
            [rng.normal(size=(WINDOW * len(few), 3))],
            features=few,
            version=2,
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
def change(scored: None) -> Iterator[Callable[[str], None]]:
    """Runs a mutation of version 2 of the vector; puts it back as it was."""
    execute("create table kept as feature_vector_v2", layer="features")
    execute("insert into kept select * from feature_vector_v2", layer="features")
    yield lambda sql: execute(
        f"alter table feature_vector_v2 {sql} settings mutations_sync = 2", layer="features"
    )
    execute("exchange tables feature_vector_v2 and kept", layer="features")
    execute("drop table kept sync", layer="features")


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
        ("one", "feature_vector_v1", len(contract(1)), [n["one"]], 0),
        ("window", "feature_vector_v2", 13, [n["window"] * WINDOW], 0),
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


def test_a_tampered_feature_is_named(change: Callable[[str], None]) -> None:
    feature = query("select features[4] as f from feature_parity_rows where model_name = 'few' limit 1")[0][
        "f"
    ]
    target = query(
        f"select bucket_id from feature_vector_v2 where abs({feature}) < 1000 "
        "and exchange = 'y' order by bucket_id limit 1 offset 4"
    )[0]["bucket_id"]
    where = f"where exchange = 'y' and bucket_id = {target}"
    change(f"update {feature} = {feature} + 1 {where}")
    # the scored bucket of one row; in the windows it is the last of three, the middle one, the first
    assert differing() == [
        ("few", feature, 1, 0, 0, "y:spot:B"),
        ("window", feature, 3, 0, 0, "y:spot:B"),
    ]
    [row] = query(
        f"select largest_difference, first_differing_bucket_id from feature_parity where feature = '{feature}' "
        "and model_name = 'few'"
    )
    assert row["first_differing_bucket_id"] == target
    assert row["largest_difference"] == pytest.approx(1, rel=1e-4)


def test_null_and_not_null_are_told_apart(change: Callable[[str], None]) -> None:
    nullable = {c.name for c in contract(2) if c.type.startswith("Nullable")}
    features = query("select features from feature_parity_rows where model_name = 'few' limit 1")[0][
        "features"
    ]
    feature = next(f for f in features if f in nullable)
    [n] = query(
        f"select countIf(isFinite(ifNull({feature}, nan))) as there, count() as n from feature_vector_v2"
    )
    change(f"update {feature} = if(isFinite(ifNull({feature}, nan)), null, 7) where true")
    found = [row for row in differing() if row[0] == "few"]
    assert [row[1:5] for row in found] == [(feature, 0, n["n"] - n["there"], n["there"])]


def test_a_row_that_is_gone_is_extra_in_every_feature(change: Callable[[str], None]) -> None:
    last = query("select max(bucket_id) as b from feature_vector_v2 where exchange = 'y'")[0]["b"]
    change(f"delete where exchange = 'y' and bucket_id = {last}")
    found = [row for row in differing() if row[0] == "few"]
    assert len(found) >= 12
    assert {row[2:5] for row in found} == {(0, 0, 1)}


def test_a_row_that_went_shifts_the_window(change: Callable[[str], None]) -> None:
    """An as-of rebuild of a window is of the last rows there are now, not of those that were there."""
    row = query(
        "select bucket_id, bucket_ts_end from feature_vector_v2 where exchange = 'y' order by bucket_id limit 1 offset 5"
    )[0]
    change(f"delete where exchange = 'y' and bucket_id = {row['bucket_id']}")
    names = {row[0] for row in differing()}
    assert names == {"few", "window"}
    shifted = query(
        "select bucket_id, rows_back from feature_parity_rows where model_name = 'window' and exchange = 'y' "
        "and arrayExists((x, y) -> isNaN(x) != isNaN(y) or x != y and not isNaN(x), read_values, values_now) "
        f"and bucket_id > {row['bucket_id']} order by bucket_id, rows_back"
    )
    assert [r["rows_back"] for r in shifted] == [1, 2, 2]
