"""A peer on the bench: answers the question of `assembly`, or reads online features, and prints its times as JSON.

A program of its own: it runs in the peers' environment, where nothing of ours is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

KEYS = ("exchange", "market_type", "symbol")


def seconds(action: Callable[[], Any], runs: int) -> list[float]:
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found


def save(folder: Path, name: str, rows: Any, columns: list[Any]) -> str:
    """The result in the order of its rows' numbers, for the comparison; not timed."""
    path = folder / f"result-{name}.npy"
    order = np.argsort(np.asarray(rows))
    np.save(path, np.column_stack([np.asarray(c, dtype=np.float64) for c in [rows, *columns]])[order])
    return str(path)


def duckdb_assembly(folder: Path, question: dict[str, Any], runs: int, threads: int) -> dict[str, Any]:
    duckdb: Any = import_module("duckdb")
    names = question["columns"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        c = duckdb.connect(str(Path(scratch, "peer.duckdb")))
        c.execute(f"set threads = {threads}; set TimeZone = 'UTC'; set enable_progress_bar = false")
        values = ", ".join(
            f"case when r.timestamp >= l.as_of - interval {question['max_lag_ms']} millisecond then r.{n} end as {n}"
            for n in names
        )

        def query(what: str, entities: str, features: str) -> str:
            on = " and ".join(f"l.{k} = r.{k}" for k in KEYS)
            return (
                f"select {what}, {values} from {entities} l "
                f"asof left join {features} r on {on} and l.as_of >= r.known_at"
            )

        # what repeats is an ENUM, as it is LowCardinality in ClickHouse
        for key in KEYS:
            c.execute(
                f"create type {key}_type as enum (select distinct {key} from '{folder}/features.parquet' order by 1)"
            )
        cast = ", ".join(f"{k}::{k}_type as {k}" for k in KEYS)
        for table in ("entities", "features"):
            c.execute(f"create table {table} as select * replace ({cast}) from '{folder}/{table}.parquet'")
        stored = query("l.*", "entities", "features")
        files = query('l."row"', f"'{folder}/entities.parquet'", f"'{folder}/features.parquet'")

        def to_numpy() -> dict[str, Any]:
            found: dict[str, Any] = c.execute(files).fetchnumpy()
            return found

        def to_table() -> None:
            c.execute(f"create or replace table training as {stored}")

        def as_floats(found: dict[str, Any]) -> list[Any]:
            return [np.ma.filled(np.ma.asarray(found[n], dtype=np.float64), np.nan) for n in names]

        first = to_numpy()
        result = [save(folder, "duckdb-numpy", first["row"], as_floats(first))]
        to_table()
        made = c.execute('select "row", ' + ", ".join(names) + " from training").fetchnumpy()
        result.append(save(folder, "duckdb-table", made["row"], as_floats(made)))
        return {
            "version": duckdb.__version__,
            "results": result,
            "table_s": seconds(to_table, runs),
            "numpy_s": seconds(to_numpy, runs),
        }


def polars_assembly(folder: Path, question: dict[str, Any], runs: int, threads: int) -> dict[str, Any]:
    os.environ["POLARS_MAX_THREADS"] = str(threads)
    pl: Any = import_module("polars")
    names = question["columns"]
    # the bound is on the event; known_at is later by the same lag everywhere
    tolerance = timedelta(milliseconds=question["max_lag_ms"] - question["known_lag_ms"])

    def joined(entities: Any, features: Any) -> Any:
        return entities.sort("as_of").join_asof(
            features.sort("known_at"),
            left_on="as_of",
            right_on="known_at",
            by=list(KEYS),
            strategy="backward",
            tolerance=tolerance,
        )

    def from_files() -> dict[str, Any]:
        frame = (
            joined(
                pl.scan_parquet(folder / "entities.parquet"),
                pl.scan_parquet(folder / "features.parquet").drop("timestamp"),
            )
            .select("row", *names)
            .collect()
        )
        return {n: frame[n].to_numpy() for n in frame.columns}

    memory = [pl.read_parquet(folder / f"{n}.parquet") for n in ("entities", "features")]
    first = from_files()
    result = [save(folder, "polars-numpy", first["row"], [first[n] for n in names])]
    frame = joined(*memory)
    result.append(save(folder, "polars-table", frame["row"].to_numpy(), [frame[n].to_numpy() for n in names]))
    return {
        "version": pl.__version__,
        "results": result,
        "table_s": seconds(lambda: joined(*memory), runs),
        "numpy_s": seconds(from_files, runs),
    }


def feast_store(folder: Path, columns: list[str], ttl: timedelta, source: Path) -> tuple[Any, Any]:
    """A Feast repository with one feature view of these columns: file source, SQLite online store."""
    os.environ["FEAST_USAGE"] = "False"
    feast: Any = import_module("feast")
    repo: Any = import_module("feast.repo_config")
    types: Any = import_module("feast.types")
    store = feast.FeatureStore(
        config=repo.RepoConfig(
            project="bench",
            provider="local",
            # read once, as a server would
            registry=repo.RegistryConfig(path=str(folder / "registry.db"), cache_ttl_seconds=0),
            offline_store={"type": "dask"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    entities = [feast.Entity(name=k, join_keys=[k], value_type=feast.ValueType.STRING) for k in KEYS]
    view = feast.FeatureView(
        name="market",
        entities=entities,
        ttl=ttl,
        schema=[
            *(feast.Field(name=k, dtype=types.String) for k in KEYS),
            *(feast.Field(name=n, dtype=types.Float64) for n in columns),
        ],
        source=feast.FileSource(path=str(source), timestamp_field="known_at"),
    )
    service = feast.FeatureService(name="model", features=[view])
    store.apply([*entities, view, service])
    return store, service


def feast_assembly(folder: Path, question: dict[str, Any], runs: int, threads: int) -> dict[str, Any]:
    pd: Any = import_module("pandas")
    import_module("dask").config.set(scheduler="threads", num_workers=threads)
    names = question["columns"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        ttl = timedelta(milliseconds=question["max_lag_ms"] - question["known_lag_ms"])
        store, _ = feast_store(Path(scratch), names, ttl, folder / "features.parquet")
        features = [f"market:{n}" for n in names]

        def to_frame() -> Any:
            entities = pd.read_parquet(folder / "entities.parquet").rename(
                columns={"as_of": "event_timestamp"}
            )
            return store.get_historical_features(entity_df=entities, features=features).to_df()

        frame = to_frame()
        result = save(folder, "feast", frame["row"].to_numpy(), [frame[n].to_numpy() for n in names])
        version = import_module("importlib.metadata").version("feast")
        return {"version": version, "results": [result], "table_s": [], "numpy_s": seconds(to_frame, runs)}


def feast_online(
    folder: Path, instruments: int, features: int, batches: list[int], calls: int
) -> dict[str, Any]:
    """Milliseconds of each get_online_features of the first n instruments, by n."""
    pd: Any = import_module("pandas")
    names = [f"f{i:03d}" for i in range(features)]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch, "features.parquet")
        rows = pd.DataFrame(
            {
                "exchange": "bench",
                "market_type": "spot",
                "symbol": [f"S{i:03d}" for i in range(instruments)],
                "known_at": datetime.now(UTC),
                **{n: np.arange(instruments) + i / 7 for i, n in enumerate(names)},
            }
        )
        rows.to_parquet(source)
        store, service = feast_store(Path(scratch), names, timedelta(days=1), source)
        store.write_to_online_store("market", df=rows)
        ms: dict[str, list[float]] = {}
        for n in batches:
            keys = rows[list(KEYS)].head(n).to_dict("records")
            found = store.get_online_features(features=service, entity_rows=keys).to_dict()
            if found[names[-1]] != rows[names[-1]].head(n).tolist():
                raise SystemExit("Feast does not give back what was written")

            def read(keys: list[dict[str, str]] = keys) -> Any:
                return store.get_online_features(features=service, entity_rows=keys).to_dict()

            seconds(read, 10)
            ms[str(n)] = [s * 1000 for s in seconds(read, calls)]
        return {"version": import_module("importlib.metadata").version("feast"), "ms": ms}


ASSEMBLY = {"duckdb": duckdb_assembly, "polars": polars_assembly, "feast": feast_assembly}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*ASSEMBLY, "online"])
    parser.add_argument("folder", type=Path, help="of question.json and the parquet files; scratch")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--instruments", type=int, default=64)
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--calls", type=int, default=200)
    a = parser.parse_args()
    if a.what == "online":
        batches = [int(x) for x in a.batches.split(",")]
        found = feast_online(a.folder, a.instruments, a.features, batches, a.calls)
    else:
        question = json.loads((a.folder / "question.json").read_text())
        found = ASSEMBLY[a.what](a.folder, question, a.runs, a.threads)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
