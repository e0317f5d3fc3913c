"""Copies of one market, each spoiled at its own moment T, side by side: one dbt run builds them all.

A variant is a symbol. Symbol FULL is the truth, and a variant's rows with as_of <= T must equal FULL's:

* cut: only what was known at T is there, and the feeds' watermarks stand at T.
* shuffle: everything is there, but what became known after T has its values permuted.
* late: at first as `cut`; `grow` then adds the rest, and what happened before T and became known after it.
* resumed: as `late`, without the late rows: at the end it has to equal FULL from the first row to the last.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, Literal

from python_udfs import db
from python_udfs.ingest.records import COLUMNS, NATURAL_KEY, Kind
from python_udfs.settings import settings
from tests.leakage.market import FULL
from tests.oracles.clock import SECOND_US
from tests.support import execute, query, us

FOREVER: Final = 4_000_000_000 * SECOND_US
# Late rows of trades are told from all others by their ids.
LATE_ID: Final = 10**12
Treatment = Literal["cut", "shuffle", "late", "resumed"]


@dataclass(frozen=True, slots=True)
class Variant:
    """`symbol`: its name. `at`: T in µs. `until`: its rows with as_of <= until equal FULL's."""

    symbol: str
    treatment: Treatment
    at: int

    @property
    def until(self) -> int:
        return FOREVER if self.treatment == "resumed" else self.at


def moments(features: str, seed: int) -> dict[str, int]:
    """The T to test (µs), out of the clock's buckets of FULL: where off-by-one errors live.

    All lie in the later three quarters, before the feeds end: there is a past and a future.
    """
    hot = settings().database("hot")
    buckets = query(
        f"select exchange, market_type, {us('bucket_ts_start')} as s, {us('bucket_ts_end')} as e, tape_us, "
        "toString(cut_trigger) as cut, toUnixTimestamp(anchor_ts) * 1000000 as anchor "
        f"from {features}.bucket_tapes where symbol = '{FULL}' order by e, bucket_id, exchange, market_type"
    )
    complete_to = query(
        f"select {us('min(watermark)')} as us from {hot}.watermarks "
        f"where symbol = '{FULL}' and kind in ('trades', 'orderbooks')"
    )[0]["us"]
    # book states under way: they happen, and 10 s may pass until they are known
    under_way = query(
        f"select exchange, market_type, {us('timestamp')} as t, {us('known_at')} as k from {hot}.orderbooks "
        f"where symbol = '{FULL}' and known_at > timestamp and known_at < timestamp + toIntervalSecond(10)"
    )

    def in_doubt(bucket: Mapping[str, Any]) -> int:
        market = (bucket["exchange"], bucket["market_type"])
        return sum(
            (u["exchange"], u["market_type"]) == market and u["t"] <= bucket["e"] < u["k"] for u in under_way
        )

    first, low = buckets[0]["e"], buckets[len(buckets) // 4]["e"]
    high = min(buckets[len(buckets) * 9 // 10]["e"], complete_to - 1)
    body = [b for b in buckets if low <= b["s"] and b["e"] < high]
    own_cuts = [b for b in body if b["cut"] not in ("time", "anchor") and b["e"] > b["s"]]
    happened = sorted({t for b in body for t in b["tape_us"]})
    r = random.Random(seed)
    r.shuffle(own_cuts)
    end = max(own_cuts, key=in_doubt)["e"]
    widest = max(pairwise(happened), key=lambda pair: pair[1] - pair[0])
    middle = r.choice(own_cuts)
    return {
        "END": end,  # a bucket's last trade
        "BEFORE": end - 1,  # 1 µs before that bucket closes
        "TIMED": r.choice([b["e"] for b in body if b["cut"] == "time"]),
        "MID": (middle["s"] + middle["e"]) // 2,
        "GAP": sum(widest) // 2,
        "HOUR": max(b["anchor"] for b in buckets if first < b["anchor"] < high),
    }


def make(at: Mapping[str, int], treatments: Iterable[Treatment]) -> list[Variant]:
    """Inserts the variants' raw rows: one variant for each T and treatment, and one that is to resume."""
    variants = [Variant(f"{t.upper()}_{name}", t, when) for name, when in at.items() for t in treatments]
    variants.append(Variant("RESUMED", "resumed", at["MID"]))
    for v in variants:
        known = f"known_at <= {_time(v.at)}"
        for kind in COLUMNS:
            _copy(kind, v.symbol, known)
            if v.treatment == "shuffle":
                _copy(kind, v.symbol, f"not ({known})", shuffled=True)
        # at T all that is known at T is there: the feed is complete up to the next microsecond
        shown = "watermark" if v.treatment == "shuffle" else f"least(watermark, {_time(v.at + 1)})"
        _watermarks(v, shown)
    return variants


def grow(variants: Iterable[Variant]) -> None:
    """The late and the resumed variants get what became known after T; the late ones also late rows: for
    each of the last 20 s and some of what is long published, with the values of other rows."""
    for v in variants:
        if v.treatment not in ("late", "resumed"):
            continue
        recent = f"timestamp > {_time(v.at - 20 * SECOND_US)}"
        for kind in COLUMNS:
            _copy(kind, v.symbol, f"known_at > {_time(v.at)}")
            if v.treatment == "late":
                some = f"timestamp < {_time(v.at)} and ({recent} or cityHash64(timestamp) % 8 = 0)"
                _copy(kind, v.symbol, some, shuffled=True, replaced=_as_late(v.at, recent))
        _watermarks(v, "watermark")


def _as_late(t: int, recent: str) -> dict[str, str]:
    """SQL by column: the row as a new event, known up to 4 s (every other: 1 ms) after T (µs). Recent ones
    happen within 3 s before T, so that nothing newer makes them stale; older ones where they were."""
    within = "cityHash64(timestamp, {}) % {}".format
    delay = f"if({within(2, 2)} = 0, {within(3, 1000)}, {within(3, 4 * SECOND_US)})"
    return {
        "timestamp": f"if({recent}, {_time(t)} - toIntervalMicrosecond({within(1, 3 * SECOND_US)}), "
        "timestamp + toIntervalMicrosecond(1))",
        "known_at": f"{_time(t + 1)} + toIntervalMicrosecond({delay})",
        "trade_id": f"toString({LATE_ID} + toUInt64OrZero(trade_id))",
        "last_update_id": "last_update_id + 1",
    }


def _time(us: int) -> str:
    return f"fromUnixTimestamp64Micro({us}, 'UTC')"


def raw_columns(table: str) -> list[str]:
    """The columns of a raw table that an insert gives."""
    rows = query(
        "select name from system.columns where database = %(d)s and table = %(t)s "
        "and default_kind != 'MATERIALIZED' order by position",
        d=settings().database("hot"),
        t=table,
    )
    return [r["name"] for r in rows]


def _value_groups(kind: Kind) -> list[list[str]]:
    """Columns to permute; those of one group stay together (a book must not be crossed)."""
    if kind == "trades":
        return [["price"], ["quantity"], ["side", "is_maker"]]
    if kind == "liquidations":
        return [["side", "price", "quantity"]]
    return [[c for c, of in COLUMNS[kind].items() if c not in NATURAL_KEY[kind] and of != "time"]]


def _copy(
    kind: Kind, symbol: str, where: str, *, shuffled: bool = False, replaced: Mapping[str, str] | None = None
) -> None:
    """Inserts rows of FULL once more under another symbol.

    shuffled: with the values of one another. replaced: SQL by column, over the columns of the row.
    """
    columns = raw_columns(kind)
    source = f"{kind} final where symbol = '{FULL}' and {where}"
    if shuffled:
        groups = _value_groups(kind)
        groups = [[c for c in columns if not any(c in g for g in groups)], *groups]
        arrays = ", ".join(f"groupArray(tuple({', '.join(g)})) as g{i}" for i, g in enumerate(groups))
        # the first group stays in place
        joined = ", ".join(f"{f'arrayShuffle(g{i}, {i})' if i else 'g0'} as v{i}" for i in range(len(groups)))
        names = ", ".join(f"v{i}.{j} as {c}" for i, g in enumerate(groups) for j, c in enumerate(g, 1))
        order = ", ".join(["timestamp", "known_at", *NATURAL_KEY[kind]])
        source = (
            f"(select {names} from (select {arrays} from (select * from {source} order by {order}) "
            f"group by exchange, market_type) array join {joined})"
        )
    to = {"symbol": db.quote(symbol), "underlying_asset": db.quote(symbol), **(replaced or {})}
    values = ", ".join(to.get(c, c) for c in columns)
    execute(f"insert into {kind} ({', '.join(columns)}) select {values} from {source}")


def _watermarks(v: Variant, watermark: str) -> None:
    """The feeds of the variant, from FULL's; `watermark`: SQL over it. Its text makes the load's id."""
    execute(
        "insert into watermarks (kind, exchange, market_type, symbol, watermark, data_source, load_id) "
        f"select kind, exchange, market_type, {db.quote(v.symbol)}, {watermark}, '', {db.quote(watermark)} "
        "from (select kind, exchange, market_type, max(watermark) as watermark from watermarks "
        f"where symbol = '{FULL}' group by kind, exchange, market_type)"
    )


def set_defaults(features: str, rows: Sequence[tuple[object, ...]]) -> None:
    """The clock's parameters, instead of the seed's."""
    execute(f"truncate table {features}.bucket_defaults")
    execute(f"insert into {features}.bucket_defaults values", rows)


def add_instruments(
    features: str, contract_values: Mapping[tuple[str, str], int], symbols: Iterable[str]
) -> None:
    """Reference data of the variants. A variant is its own base asset: what pairs markets stays inside it."""
    rows = [
        (*of, s, s, "USDT", value, s, Decimal("0.01"))
        for of, value in contract_values.items()
        for s in symbols
    ]
    execute(f"insert into {features}.instruments values", rows)
