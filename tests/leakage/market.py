"""A generated market with what tempts a leak: ties, gaps, hour boundaries, rows that are known late.

All instruments carry the symbol FULL: the whole truth that variants are cut from.
"""

from __future__ import annotations

import random
from typing import Final

from python_udfs.ingest.records import COLUMNS, Column, Kind
from tests.oracles.clock import HOUR_US, MINUTE_US, SECOND_US, Trade
from tests.support import Instrument, execute, insert_books, insert_trades, insert_watermark

START: Final = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
END: Final = START + 5 * HOUR_US // 2
E8: Final = 10**8
FULL: Final = "FULL"

BookRow = tuple[int, int, int, int, int, int, int]

# exchange, market type -> the clock's row in bucket_defaults behind `symbol`: modes that look at different
# things. min_minutes is low: hours after the first are calibrated, from minutes that a leak would get wrong.
MARKETS: Final[dict[tuple[str, str], tuple[object, ...]]] = {
    ("alpha", "spot"): ("volume", "hour", 30, 40, 12, 1, 1000, 50, 20, 50, 24, 5, ""),
    ("alpha", "linear"): ("event", "hour", 30, 60, 12, 1, 1000, 50, 20, 9, 24, 5, ""),
    ("beta", "inverse"): ("hybrid", "hour", 20, 45, 12, 1, 1000, 50, 9, 50, 1, 5, ""),
}


def trades(r: random.Random) -> list[Trade]:
    """From 40 s before START to END: ties, gaps of 20 min; 1 in 25 is known 0.5 s to 10 min late."""
    t, price, i, out = START - 40 * SECOND_US, 100 * E8, 0, []
    while t < END:
        t += r.choice([0, 0, 1000, r.randrange(1, 900_000), r.randrange(1, 25 * SECOND_US)])
        if r.random() < 0.002:
            t += 20 * MINUTE_US
        price = max(E8, price + r.choice([-1, 0, 0, 1]) * E8 // 100)
        late = r.choice([500_000, 7 * SECOND_US, 10 * MINUTE_US]) if r.random() < 0.04 else 0
        i += 1
        out.append(Trade(t, i, str(i), r.randrange(1, 2 * E8), t + late, price, r.choice(["buy", "sell"])))
    return out


def books(r: random.Random, first: int, last: int) -> list[BookRow]:
    """Ties, stalls (what happens in one is known at its end), rows that are stale on arrival or too old to
    use, empty sides, and silences longer than the allowed age."""
    t, u, out, bid, stalled_until = first - 3 * SECOND_US, 0, [], 100 * E8, 0
    while t < last + 20 * SECOND_US:
        t += r.choice([0, 1000, r.randrange(1, 2_000_000), r.randrange(1, 9 * SECOND_US)])
        if r.random() < 0.01:
            t += 25 * SECOND_US
        if r.random() < 0.05:
            stalled_until = t + r.randrange(1, 7 * SECOND_US)
        u += 1
        bid += r.choice([-1, 0, 0, 0, 1]) * E8 // 100
        ask = bid + r.choice([1, 1, 2, 5]) * E8 // 100
        late = r.choice([0] * 25 + [400_000, 3 * SECOND_US, 11 * SECOND_US])
        empty = r.random() < 0.01
        quantities = (0 if empty else r.randrange(1, 9 * E8), r.randrange(1, 9 * E8))
        out.append((t, u, 0 if empty else bid, ask, *quantities, max(t + late, stalled_until)))
    return out


def load() -> None:
    """Puts the market into the raw tables of the current store, as symbol FULL."""
    r = random.Random(11)
    for exchange, market_type in MARKETS:
        instrument = (exchange, market_type, FULL)
        rows = trades(r)
        first, last = rows[0].timestamp, rows[-1].timestamp
        insert_trades(rows, instrument)
        insert_books(books(r, first, last), instrument, levels=20)
        for kind in COLUMNS:
            if kind not in ("trades", "orderbooks"):
                _insert_slow(kind, instrument, first, last)
            insert_watermark(instrument, kind, last + 20 * SECOND_US)


def _insert_slow(kind: Kind, instrument: Instrument, first: int, last: int) -> None:
    """A row each 100 s that becomes known 0, 20 or 40 s later; values of no meaning."""
    random_number = "cityHash64(number, '{}') % 1000000"
    sql: dict[Column, str] = {
        "time": "t",
        "time?": "t",
        "date": "toDate('2026-03-27')",
        "uint64": "number",
        "bool": "number % 2",
        "string": "'FULL'",
        "e8": f"toDecimal64({random_number}, 8) / 1000 + 1",
        "wide": f"toDecimal128({random_number}, 8) + 1",
    }
    values = {name: sql[of].format(name) for name, of in COLUMNS[kind].items()}
    if "side" in values:
        values["side"] = "if(cityHash64(number) % 2 = 0, 'buy', 'sell')"
    execute(
        f"insert into {kind} (exchange, market_type, symbol, timestamp, known_at, data_source, "
        f"{', '.join(values)}) select '{instrument[0]}', '{instrument[1]}', '{instrument[2]}', "
        f"fromUnixTimestamp64Micro(toInt64({first} + number * 100 * {SECOND_US}), 'UTC') as t, "
        f"t + toIntervalSecond(number % 3 * 20), 'generator', {', '.join(values.values())} "
        f"from numbers({(last - first) // (100 * SECOND_US)})"
    )
