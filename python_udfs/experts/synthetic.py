"""SYNTHETIC decisions: a made-up expert for the demo and the tests. No person decided any of this."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from clickhouse_driver import Client

from python_udfs.errors import UserError
from python_udfs.experts.records import OPTIONAL, REQUIRED

EXPERT: Final = "synthetic-tape-reader"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 1_000_000


def synthetic_decisions(
    seed: int, *, client: Client, count: int = 400, horizon: str = "10 s"
) -> list[dict[str, str]]:
    """Decisions as texts by CSV column: order flow of the last five buckets, read with noise, soon after a bucket ends.

    The generated market plants buying pressure that tilts both flow and drift: an honest reader of the flow has an
    edge there, and none in a market without it. The same seed and store give the same decisions.

    Args:
        client: on the features database.
        count: at most so many, at random buckets that have four before them.

    Raises:
        UserError: no feature rows.
    """
    rows = client.execute(
        """
        select
            exchange, market_type, symbol, toUnixTimestamp64Micro(bucket_ts_end),
            arraySum(groupArray(buy_volume - sell_volume) over past) / nullIf(arraySum(groupArray(volume) over past), 0),
            count() over past
        from feature_vector_v2
        window past as (
            partition by exchange, market_type, symbol order by bucket_id rows between 4 preceding and current row
        )
        order by exchange, market_type, symbol, bucket_id
        """
    )
    rows = [row for row in rows if row[5] == 5 and row[4] is not None]
    if not rows:
        raise UserError("there are no feature rows to decide on: run `make build`")
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(rows), size=min(count, len(rows)), replace=False))
    flow = np.array([row[4] for row in rows], dtype=np.float64)
    scale = float(flow.std()) or 1.0
    decisions = []
    for i in chosen:
        exchange, market_type, symbol, end, seen = rows[i][:5]
        belief = seen / scale + rng.normal(scale=0.5)
        intent = "hold" if abs(belief) < 0.5 else "buy" if belief > 0 else "sell"
        decided = end + int(rng.integers(0, _SECOND))
        cells = {
            "expert": EXPERT,
            "exchange": exchange,
            "market_type": market_type,
            "symbol": symbol,
            "decided_at": _iso(decided),
            "entered_at": _iso(decided + int(rng.integers(0, 2 * _SECOND))),
            "intent": intent,
            "horizon": horizon,
            "confidence": f"{min(abs(belief) / 3, 1):.2f}",
            "rationale": f"SYNTHETIC: flow of the last five buckets {seen:+.2f}",
        }
        decisions.append({name: cells.get(name, "") for name in (*REQUIRED, *OPTIONAL)})
    return decisions


def write_csv(path: Path, decisions: list[dict[str, str]]) -> None:
    """A file for `marketprism experts import`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*REQUIRED, *OPTIONAL])
            writer.writeheader()
            writer.writerows(decisions)
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror}") from e


def _iso(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds").replace("+00:00", "Z")
