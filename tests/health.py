"""What the tests of health, drift and states share: the relations that they read, made and filled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from python_udfs.scorer.relation import Instrument
from python_udfs.settings import REPOSITORY
from tests.support import execute

MODELS: Final = REPOSITORY / "dbt_project" / "models"
SECOND: Final = timedelta(seconds=1)
KEY: Final = (
    "exchange LowCardinality(String), market_type LowCardinality(String), symbol LowCardinality(String)"
)
TIME: Final = "DateTime64(6, 'UTC')"
# relations without a contract, as the models that make them have them
BY_HAND: Final = {
    "stale_sources": f"{KEY}, kind String, hour DateTime('UTC'), reason String, buckets UInt64, first_at {TIME}, last_at {TIME}, "
    "worst_age_s Float64",
    "late_trades": f"{KEY}, hour DateTime('UTC'), trades UInt64, late_trades UInt64, late_share Float64, worst_delay_ms Int64",
    "cross_verdicts": f"{KEY}, reference_exchange String, reference_market_type String, reference_symbol String, "
    f"hour DateTime('UTC'), verdict String, buckets UInt64, first_at {TIME}, last_at {TIME}",
    "udf_failures": f"model_name String, {KEY}, hour DateTime('UTC'), reason String, failed_rows UInt64",
    "stale_candidates": f"{KEY}, hour DateTime('UTC'), buckets UInt64, stale_buckets UInt64, first_stale_at {TIME}, "
    f"last_stale_at {TIME}",
    "view_refreshes": "name String, last_success_at Nullable(DateTime64(3, 'UTC')), exception String",
}


def contract(path: str, version: int | None = None) -> dict[str, str]:
    """{column: type} of a model as its yml says."""
    [model] = yaml.safe_load((MODELS / f"{path}.yml").read_text())["models"]
    assert version in (None, model.get("latest_version"))
    return {c["name"]: c["data_type"] for c in model["columns"]}


def create_relations() -> None:
    """Everything that health, drift and states read from other models, empty."""
    tables = {
        "unified_buckets": contract("buckets/unified_buckets"),
        "feature_vector_v2": contract("serving/feature_vector", 2),
        "bucket_labels": contract("labels/bucket_labels"),
    }
    columns = {name: ", ".join(f"{c} {t}" for c, t in of.items()) for name, of in tables.items()} | BY_HAND
    for name, listed in columns.items():
        execute(f"create table {name} ({listed}) engine = MergeTree order by tuple()", layer="features")


def insert(table: str, rows: Sequence[dict[str, Any]], *, layer: str = "features") -> None:
    """Rows with the same columns; what is not given has its default."""
    if rows:
        execute(
            f"insert into {table} ({', '.join(rows[0])}) values",
            [tuple(r.values()) for r in rows],
            layer=layer,
        )


def key(instrument: Instrument) -> dict[str, Any]:
    return instrument._asdict()


def buckets(instrument: Instrument, first: datetime, last: datetime, seconds: float) -> list[dict[str, Any]]:
    """Rows of unified_buckets, one after the other; each hour's last one is cut by its anchor."""
    rows, start, length = [], first, timedelta(seconds=seconds)
    while start < last:
        anchor = start.replace(minute=0, second=0, microsecond=0)
        sequence = 0 if not rows or rows[-1]["anchor_ts"] != anchor else rows[-1]["sequence"] + 1
        end = min(start + length, anchor + timedelta(hours=1), last)
        rows.append(
            key(instrument)
            | {
                "anchor_ts": anchor,
                "bucket_id": int(anchor.timestamp()) * 100_000 + sequence,
                "sequence": sequence,
                "bucket_ts_start": start,
                "bucket_ts_end": end,
                "cut_trigger": "time" if end == start + length else "anchor",
                "trade_count": 5,
                "duration_s": (end - start).total_seconds(),
            }
        )
        start = end
    return rows


def normal(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The n quantiles of a standard normal in some order: two such samples do not differ at all."""
    from scipy.stats import norm

    return np.random.default_rng(seed).permutation(norm.ppf((np.arange(n) + 0.5) / n))


def registered(folder: Path, label: str, first: datetime, last: datetime) -> None:
    """Writes the row of `models` of a model folder, with this label and training span in its card."""
    from python_udfs.scorer.card import load_model

    card, _ = load_model(folder)
    changed = card.model_copy(
        update={"label": label, "training_first_as_of": first, "training_last_as_of": last}
    )
    row = {
        "model_name": card.name,
        "model_version": card.version,
        "available": True,
        "card": changed.model_dump_json(),
        "files": {},
        "who": "test",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    insert("models", [row], layer="serving")
