"""Copies of the same market, each spoiled at its own moment T, side by side in one store: one dbt run builds them all.

A variant is a symbol. Everything of symbol FULL is the truth; a variant's rows with as_of <= T must equal FULL's:

* cut: only what was known at T is there, and the feeds' watermarks stand at T.
* shuffle: everything is there, but what became known after T has its values permuted.
* late: at first as `cut`; `grow` then adds the rest, and rows that happened before T and became known after it.
* resumed: as `late`, without the late rows: at the end it has to equal FULL from first row to last.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from python_udfs import db
from python_udfs.ingest.records import COLUMNS, NATURAL_KEY, Kind
from python_udfs.settings import settings
from tests.leakage.market import FULL
from tests.support import execute, query, us

FOREVER: Final = 4_000_000_000 * 10**6
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
    buckets = query(
        f"select exchange, market_type, {us('bucket_ts_start')} as s, {us('bucket_ts_end')} as e, toString(cut_trigger) as cut, "
        f"toUnixTimestamp(anchor_ts) * 1000000 as anchor, tape_us from {features}.bucket_tapes where symbol = '{FULL}' order by e"
    )
    complete_to = query(
        f"select {us('min(watermark)')} as us from {settings().database('hot')}.watermarks "
        f"where symbol = '{FULL}' and kind in ('trades', 'orderbooks')"
    )[0]["us"]
    ends = [b["e"] for b in buckets]
    low, high = ends[len(ends) // 4], min(ends[len(ends) * 9 // 10], complete_to - 1)
    body = [b for b in buckets if low <= b["s"] and b["e"] < high]
    own_cuts = [b for b in body if b["cut"] in ("volume", "event", "hybrid", "count") and b["e"] > b["s"]]
    by_time = [b for b in body if b["cut"] == "time"]
    happened = sorted({t for b in body for t in b["tape_us"]})
    gap = max(zip(happened, happened[1:], strict=False), key=lambda pair: pair[1] - pair[0])
    hours = sorted({b["anchor"] for b in buckets if ends[0] < b["anchor"] < high})
    # best where book states are under way: they happened before T and are known after it
    under_way = query(
        f"select exchange, market_type, {us('timestamp')} as t, {us('known_at')} as k from {settings().database('hot')}.orderbooks "
        f"where symbol = '{FULL}' and known_at > timestamp and known_at < timestamp + toIntervalSecond(10)"
    )

    def in_doubt(b: dict[str, Any]) -> int:
        return sum(
            u["t"] <= b["e"] < u["k"] and (u["exchange"], u["market_type"]) == (b["exchange"], b["market_type"]) for u in under_way
        )

    r = random.Random(seed)
    r.shuffle(own_cuts)
    cut = max(own_cuts, key=in_doubt)
    at = {
        "END": cut["e"],  # the last trade's own time
        "BEFORE": cut["e"] - 1,  # 1 µs before a bucket would close
        "TIMED": r.choice(by_time)["e"],
        "MID": sum(r.choice(own_cuts)[key] for key in ("s", "e")) // 2,
        "GAP": sum(gap) // 2,
        "HOUR": hours[-1],
    }
    return at


def make(at: Mapping[str, int], treatments: Iterable[Treatment] = ("cut", "shuffle", "late")) -> list[Variant]:
    """Inserts the variants' raw rows, one variant for each T and treatment, and one `resumed` if there is any `late`."""
    treatments = list(treatments)
    variants = [Variant(f"{treatment.upper()}_{name}", treatment, t) for name, t in at.items() for treatment in treatments]
    if "late" in treatments:
        variants.append(Variant("RESUMED", "resumed", at["MID"]))
    for v in variants:
        known = f"known_at <= {_time(v.at)}"
        for kind in COLUMNS:
            _copy(kind, v.symbol, known)
            if v.treatment == "shuffle":
                _copy(kind, v.symbol, f"not ({known})", shuffled=True)
        # at T everything known at T is there: the feed is complete up to the next microsecond
        _watermarks(v, "watermark" if v.treatment == "shuffle" else f"least(watermark, {_time(v.at + 1)})")
    return variants


def grow(variants: Iterable[Variant]) -> None:
    """The late and resumed variants get what became known after T; the late ones also rows that happened before it."""
    for v in variants:
        if v.treatment not in ("late", "resumed"):
            continue
        for kind in COLUMNS:
            _copy(kind, v.symbol, f"known_at > {_time(v.at)}")
            if v.treatment == "late":
                # all of the last 20 s, and some of what is long published; the values of other rows, so that they would matter
                _copy(
                    kind,
                    v.symbol,
                    f"timestamp < {_time(v.at)} and (timestamp > {_time(v.at - 20_000_000)} or cityHash64(timestamp) % 8 = 0)",
                    shuffled=True,
                    late_after=v.at,
                )
        _watermarks(v, "watermark")


def _time(us: int) -> str:
    return f"fromUnixTimestamp64Micro({us}, 'UTC')"


def _value_groups(kind: Kind) -> list[list[str]]:
    """Columns to permute; those of one group stay together (a book must not be crossed)."""
    if kind == "trades":
        return [["price"], ["quantity"], ["side", "is_maker"]]
    if kind == "liquidations":
        return [["side", "price", "quantity"]]
    return [[c for c, of in COLUMNS[kind].items() if c not in NATURAL_KEY[kind] and of != "time"]]


def _copy(kind: Kind, symbol: str, where: str, *, shuffled: bool = False, late_after: int | None = None) -> None:
    """Inserts FULL's rows once more under another symbol.

    shuffled: with the values of one another. late_after: as new events known up to 4 s (half: 1 ms) after that time (µs): those of the
    20 s before it happened in the 3 s before it (so that nothing newer makes them stale), older ones 1 µs after the copied row.
    """
    hot = settings().database("hot")
    columns = [
        r["name"]
        for r in query(
            "select name from system.columns where database = %(d)s and table = %(t)s and default_kind != 'MATERIALIZED'",
            d=hot, t=kind,
        )
    ]  # fmt: skip
    replaced = {"symbol": db.quote(symbol), "underlying_asset": db.quote(symbol)}
    if late_after is not None:
        replaced |= {
            "timestamp": f"if(timestamp > {_time(late_after - 20_000_000)}, {_time(late_after)} - toIntervalMicrosecond(cityHash64(timestamp, 1) "
            "% 3000000), timestamp + toIntervalMicrosecond(1))",
            "known_at": f"{_time(late_after + 1)} + toIntervalMicrosecond(cityHash64(timestamp, 2) % if(cityHash64(timestamp, 3) % 2 = 0, 1000, 4000000))",
            "trade_id": "toString(trade_seq + 1000000000000)",
            "last_update_id": "last_update_id + 1",
        }
    truth = f"(select *{', trade_seq' if kind == 'trades' else ''} from {kind} final where symbol = '{FULL}' and {where})"
    if not shuffled:
        select, source = [replaced.get(c, c) for c in columns], truth
    else:
        groups = _value_groups(kind)
        kept = [c for c in [*columns, *(["trade_seq"] if kind == "trades" else [])] if not any(c in g for g in groups)]
        arrays = [f"groupArray(tuple({', '.join(g)})) as g{i}" for i, g in enumerate([kept, *groups])]
        orders = ", ".join(["timestamp", "known_at", *NATURAL_KEY[kind]])
        source = (
            f"(select {', '.join(f'v{i}.{j} as {c}' for i, g in enumerate([kept, *groups]) for j, c in enumerate(g, 1))} from "
            f"(select {', '.join(arrays)} from (select * from {truth} order by {orders}) group by exchange, market_type) array join "
            f"g0 as v0, {', '.join(f'arrayShuffle(g{i}, {i}) as v{i}' for i in range(1, len(groups) + 1))})"
        )
        select = [replaced.get(c, c) for c in columns]
    execute(f"insert into {kind} ({', '.join(columns)}) select {', '.join(select)} from {source}")


def _watermarks(v: Variant, watermark: str) -> None:
    execute(
        "insert into watermarks (kind, exchange, market_type, symbol, watermark, data_source, load_id) "
        f"select kind, exchange, market_type, {db.quote(v.symbol)}, {watermark}, data_source, concat(load_id, {db.quote(watermark)}) "
        f"from watermarks final where symbol = '{FULL}'"
    )


def set_defaults(features: str, rows: Sequence[tuple[object, ...]]) -> None:
    """The clock's parameters, instead of the seed's."""
    execute(f"truncate table {features}.bucket_defaults")
    execute(f"insert into {features}.bucket_defaults values", rows)


def add_instruments(features: str, contract_values: Mapping[tuple[str, str], int], symbols: Iterable[str]) -> None:
    """Reference data of the variants. A variant is its own base asset: what pairs markets stays inside it."""
    rows = [(*market, s, s, "USDT", value, s, 0) for market, value in contract_values.items() for s in symbols]
    execute(f"insert into {features}.instruments values", rows)
