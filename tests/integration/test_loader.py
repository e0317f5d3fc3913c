"""The loader against a real server: what is loaded, what is refused, and what a death leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_udfs import db
from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest import loader
from python_udfs.ingest.availability import Instrument
from python_udfs.ingest.loader import Store, load
from python_udfs.ingest.records import (
    COLUMNS,
    Batch,
    Item,
    Kind,
    LoadResult,
    Note,
    Progress,
    Reject,
    Watermark,
)
from python_udfs.settings import Settings, settings

T = 1_723_161_240_000_000  # 2024-08-08 23:54:00 UTC, µs
E8 = 10**8
BTC = Instrument("binance", "spot", "BTCUSDT")
BOOKS = ["timestamp", "last_update_id", "best_bid_price", "best_ask_price"]


class Memory:
    """A reader of items that are in memory; its one file holds what tells two loads apart."""

    options: dict[str, str]

    def __init__(
        self, path: Path, items: Sequence[Item], *, name: str = "a", data_source: str = "generator"
    ) -> None:
        file = path / name
        file.write_text(name)
        self.paths, self.options, self.data_source = [file], {}, data_source
        self.items: Sequence[Item] = items

    def read(self) -> Iterator[Item]:
        yield from self.items


def batch(
    kind: Kind,
    rows: int,
    *,
    instrument: Instrument = BTC,
    file: str = "a",
    first_line: int = 1,
    **columns: Any,
) -> Batch:
    """`rows` plausible rows; `columns` replace the plausible values (a scalar: in every row)."""
    number = np.arange(rows)
    given: dict[str, Any] = {
        "exchange": instrument.exchange,
        "market_type": instrument.market_type,
        "symbol": instrument.symbol,
        "timestamp": T + number * 1_000_000,
        "received_at": 0,
        "data_source": "generator",
    }
    plausible = {
        "time": T,
        "time?": 0,
        "e8": E8,
        "wide": "12345678901234.00000001",
        "uint64": 3,
        "bool": number % 2 == 0,
        "date": np.full(rows, np.datetime64("2024-09-01")),
    }
    for name, type_ in COLUMNS[kind].items():
        given[name] = plausible.get(type_, "8h")
    special: dict[str, Any] = {
        "side": np.where(number % 2 == 0, "buy", "sell"),
        "trade_id": [str(i + 1) for i in number],
        "last_update_id": number + 1,
        "best_ask_price": 2 * E8,
        "bids": '[["1","1"]]',
        "asks": '[["2","1"]]',
    }
    given |= {name: value for name, value in special.items() if name in given} | columns

    def column(value: Any) -> np.ndarray[Any, Any]:
        if isinstance(value, str):
            return np.full(rows, value, dtype=object)
        if isinstance(value, int):
            return np.full(rows, value, dtype=np.int64)
        array = np.asarray(value)
        return array.astype(object) if array.dtype.kind == "U" else array

    return Batch(kind, {k: column(v) for k, v in given.items()}, file, number + first_line)


def query(text: str) -> list[tuple[Any, ...]]:
    with db.connect(settings().database("hot")) as c:
        found: list[tuple[Any, ...]] = c.execute(text)
        return found


def content(*, quarantine: bool = True) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all raw tables, but for when they were written; and that nothing private is left."""
    assert private_tables() == []
    found = {kind: query(f"select * except created_at from {kind} order by all") for kind in COLUMNS}
    found["watermarks"] = query("select * except created_at from watermarks order by all")
    if quarantine:
        found["quarantine"] = query("select * except created_at from quarantine order by all")
    return found


@pytest.fixture
def store(module_store: Settings) -> Settings:
    """Databases as a migration leaves them; migrating anew for each test would take most of the time."""
    extra = query(
        "select name from system.tables where database = currentDatabase() and "
        r"(name like '\_load%' or name in ('to_seen', 'fails', 'seen', 'broken'))"
    )
    for (name,) in extra:
        query(f"drop table {name} sync")
    for table in (*COLUMNS, "quarantine", "watermarks", "loads"):
        query(f"truncate table {table}")
    return module_store


def private_tables() -> list[str]:
    return [
        name
        for (name,) in query(
            r"select name from system.tables where database = currentDatabase() and name like '\_load%'"
        )
    ]


def reasons() -> list[tuple[int, str, str]]:
    return query("select line, field, reason from quarantine order by line, field")  # type: ignore[return-value]


MIXED: list[Item] = [
    batch("trades", 50),
    Reject("trades", "a", 1000, "p", "bad_number: 'x' is not a number", '{"p":"x"}'),
    batch("orderbooks", 30),
    Progress(3),
    batch(
        "trades",
        50,
        first_line=51,
        timestamp=T + 10**9 + np.arange(50),
        trade_id=[str(i) for i in range(200, 250)],
    ),
    Watermark("trades", *BTC, T + 60_000_000),
    Note("checked", "all"),
]


def test_all_kinds_keep_their_values(store: Settings, tmp_path: Path) -> None:
    load(Memory(tmp_path, [batch(kind, 3, data_source="mapped") for kind in COLUMNS]))
    for kind in COLUMNS:
        assert query(f"select count(), uniqExact(timestamp) from {kind}") == [(3, 3)], kind
    assert query("select open_interest, toString(open_interest_value) from open_interests limit 1") == [
        (query("select toDecimal128('12345678901234.00000001', 8)")[0][0], "12345678901234.00000001")
    ]
    assert query("select toString(maturity_date) from volatility_indices limit 1") == [("2024-09-01",)]
    assert query("select is_maker, side, trade_id, trade_seq from trades order by trade_id") == [
        (True, "buy", "1", 1),
        (False, "sell", "2", 2),
        (True, "buy", "3", 3),
    ]
    assert query("select distinct received_at, next_funding_time from funding_rates") == [(None, None)]


def test_decimals_and_times_are_exact(store: Settings, tmp_path: Path) -> None:
    prices = [1, 10**18 - 1, 123_456_789_012_345_678]
    stamps = T + np.array([1, 999_999, 123_457])
    load(Memory(tmp_path, [batch("trades", 3, price=prices, timestamp=stamps, received_at=stamps - 7)]))
    assert query(
        "select toString(price), toUnixTimestamp64Micro(timestamp), toUnixTimestamp64Micro(received_at), "
        "toUnixTimestamp64Micro(known_at) from trades order by trade_id"
    ) == [
        ("0.00000001", T + 1, T + 1 - 7, T + 1),
        ("9999999999.99999999", T + 999_999, T + 999_999 - 7, T + 999_999),
        ("1234567890.12345678", T + 123_457, T + 123_457 - 7, T + 123_457),
    ]


def test_loading_twice_changes_nothing(store: Settings, tmp_path: Path) -> None:
    first = load(Memory(tmp_path, MIXED))
    assert (first.rows, first.duplicates) == (
        {"trades": 100, "orderbooks": 30},
        {"trades": 0, "orderbooks": 0},
    )
    assert (first.rejected, first.notes, first.skipped) == ({"trades": 1}, {"checked": "all"}, False)
    once, loads = content(), query("select * from loads")
    assert len(loads) == 1
    assert load(Memory(tmp_path, MIXED)).skipped
    assert (content(), query("select * from loads")) == (once, loads)
    second = load(Memory(tmp_path, MIXED), again=True)
    assert (second.rows, second.duplicates) == (
        {"trades": 0, "orderbooks": 0},
        {"trades": 100, "orderbooks": 30},
    )
    assert (content(), query("select * from loads")) == (once, loads)


def test_loading_again_brings_back_lost_rows(store: Settings, tmp_path: Path) -> None:
    """The first load's tokens must not swallow them."""
    load(Memory(tmp_path, MIXED))
    once = content()
    query("alter table trades delete where trade_seq % 3 = 0 settings mutations_sync = 2")
    query("truncate table orderbooks")
    lost = load(Memory(tmp_path, MIXED), again=True)
    assert 0 < lost.rows["trades"] < 100
    assert lost.rows["orderbooks"] == 30
    assert content() == once


def test_a_moved_file_is_the_same_load(store: Settings, tmp_path: Path) -> None:
    load(Memory(tmp_path, MIXED))
    (tmp_path / "elsewhere").mkdir()
    assert load(Memory(tmp_path / "elsewhere", MIXED)).skipped
    assert not load(Memory(tmp_path, MIXED, data_source="mapped")).skipped


def test_overlapping_files(store: Settings, tmp_path: Path) -> None:
    load(Memory(tmp_path, [batch("trades", 60)]))
    second = [
        batch(
            "trades",
            60,
            timestamp=T + np.arange(40, 100) * 10**6,
            trade_id=[str(i + 1) for i in range(40, 100)],
        )
    ]
    result = load(Memory(tmp_path, second, name="b"))
    assert (result.rows, result.duplicates) == ({"trades": 40}, {"trades": 20})
    assert query("select count(), uniqExact(trade_id) from trades") == [(100, 100)]


def test_another_instrument_is_no_duplicate(store: Settings, tmp_path: Path) -> None:
    others = [Instrument("binance", "linear", "BTCUSDT"), Instrument("bybit", "spot", "BTCUSDT")]
    items = [batch("trades", 5, instrument=i) for i in (BTC, *others)]
    load(Memory(tmp_path, items[:1]))
    assert load(Memory(tmp_path, items, name="b")).rows == {"trades": 10}


def test_duplicates_in_a_file_keep_the_first_line(store: Settings, tmp_path: Path) -> None:
    late_line = batch("trades", 1, trade_id=["7"], price=9 * E8, first_line=8)
    early_line = batch("trades", 2, trade_id=["7", "7"], price=[5 * E8, 6 * E8], timestamp=T, first_line=3)
    result = load(Memory(tmp_path, [late_line, early_line]))
    assert (result.rows, result.duplicates) == ({"trades": 1}, {"trades": 2})
    assert query("select toString(price) from trades") == [("5",)]


def test_books_of_two_sources_at_one_update_are_both_kept(store: Settings, tmp_path: Path) -> None:
    items = [batch("orderbooks", 4), batch("orderbooks", 4, data_source="mapped"), batch("orderbooks", 4)]
    result = load(Memory(tmp_path, items))
    assert (result.rows, result.duplicates) == ({"orderbooks": 8}, {"orderbooks": 4})


def test_the_same_trade_in_ms_and_in_us(store: Settings, tmp_path: Path) -> None:
    us = T + np.array([999_999, 1_000_001, 5_000_400])
    ms = us // 1000 * 1000
    load(Memory(tmp_path, [batch("trades", 3, timestamp=us)]))
    cut = load(Memory(tmp_path, [batch("trades", 3, timestamp=ms)], name="b"))
    assert cut.duplicates == {"trades": 3}
    together = [batch("trades", 3, timestamp=t, trade_id=["11", "12", "13"]) for t in (ms, us)]
    assert load(Memory(tmp_path, together, name="c")).duplicates == {"trades": 3}


def test_an_id_used_again_much_later_is_another_trade(store: Settings, tmp_path: Path) -> None:
    for name, shift in (("a", 0), ("b", 3_600_000_000)):
        assert load(Memory(tmp_path, [batch("trades", 3, timestamp=T + shift)], name=name)).rows == {
            "trades": 3
        }
    both = [batch("trades", 2, trade_id=["9", "9"], timestamp=[T, T + 3_600_000_000])]
    assert load(Memory(tmp_path, both, name="c")).rows == {"trades": 2}


def test_slices_of_a_large_load(store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loader.SLICE_ROWS, "trades", 100)
    monkeypatch.setitem(loader.FLUSH_ROWS, "trades", 70)
    shuffled = np.random.default_rng(0).permutation(1000)
    ids = [str(i) for i in shuffled]
    stamps = T + shuffled * 7_000_000
    parts = [
        batch("trades", 50, trade_id=ids[i : i + 50], timestamp=stamps[i : i + 50])
        for i in range(0, 1000, 50)
    ]
    repeated = [  # in the last and the first second of a minute, where slices are cut
        batch("trades", 3, trade_id=["edge"] * 3, timestamp=T + 60_000_000 * minute + np.array([-1, 1, 1000]))
        for minute in range(1, 100)
    ]
    result = load(Memory(tmp_path, [*parts, *repeated]))
    assert (result.rows, result.duplicates) == ({"trades": 1198}, {"trades": 99})
    assert load(Memory(tmp_path, [*parts, *repeated]), again=True).duplicates == {"trades": 1297}
    assert query("select count(), uniqExact(trade_id) from trades") == [(1198, 1001)]


def test_one_load_over_many_partitions(store: Settings, tmp_path: Path) -> None:
    day = 86_400_000_000
    load(
        Memory(
            tmp_path,
            [
                batch("trades", 150, timestamp=T + np.arange(150) * day),
                batch("open_interests", 150, timestamp=T - np.arange(150) * 30 * day),
            ],
        )
    )
    assert query("select uniqExact(toDate(timestamp)) from trades") == [(150,)]
    assert query("select count(), uniqExact(toYYYYMM(timestamp)) > 110 from open_interests") == [(150, 1)]


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("kind", "columns", "field", "reason"),
    [
        ("trades", {"symbol": "NOSUCH"}, "symbol", "unknown_symbol: binance spot NOSUCH: add it to seeds/"),
        ("trades", {"market_type": "perp"}, "market_type", "unknown_market_type: 'perp' is none of spot,"),
        ("trades", {"quantity": 0}, "quantity", "zero_quantity: 0e-8"),
        ("trades", {"price": -1}, "price", "zero_price: -1e-8"),
        ("trades", {"price": 10**18}, "price", "out_of_range: 1000000000000000000e-8"),
        ("trades", {"side": "BUY"}, "side", "bad_side: 'BUY'"),
        ("trades", {"trade_id": ""}, "trade_id", "missing_field:"),
        ("trades", {"timestamp": 1_723_161_240}, "timestamp", "out_of_range: 1723161240 µs"),
        ("trades", {"timestamp": 4_102_444_800_000_000}, "timestamp", "out_of_range: 4102444800000000 µs"),
        ("trades", {"received_at": 5}, "received_at", "out_of_range: 5 µs"),
        ("trades", {"trade_time": 0}, "trade_time", "out_of_range: 0 µs"),
        ("liquidations", {"quantity": 0}, "quantity", "zero_quantity:"),
        ("tickers", {"last_price": 0}, "last_price", "zero_price:"),
        ("orderbooks", {"best_bid_price": 2 * E8}, "best_bid_price", "crossed_book: bid 200000000e-8"),
        ("orderbooks", {"best_ask_quantity": -1}, "best_ask_quantity", "out_of_range: -1e-8"),
        ("orderbooks", {"last_update_id": -1}, "last_update_id", "out_of_range: -1 is below zero"),
        ("open_interests", {"open_interest": "1.234567891"}, "open_interest", "bad_number: '1.234567891'"),
        ("open_interests", {"open_interest": "nan"}, "open_interest", "bad_number: 'nan'"),
    ],
)
def test_a_bad_row_is_quarantined(
    tmp_path: Path, kind: Kind, columns: dict[str, Any], field: str, reason: str
) -> None:
    bad = batch(kind, 1, first_line=17, **columns)
    result = load(Memory(tmp_path, [batch(kind, 2, timestamp=[T - 10**9, T - 10**9 + 1]), bad]))
    assert (result.rows, result.rejected) == ({kind: 2}, {kind: 1})
    assert query(f"select count() from {kind}") == [(2,)]
    ((line, at, text),) = reasons()
    assert (line, at) == (17, field)
    assert text.startswith(reason)
    assert query("select kind, data_source, file, reason_code from quarantine") == [
        (kind, "generator", "a", reason.split(":", maxsplit=1)[0])
    ]


def test_an_empty_side_of_a_book_is_not_crossed(store: Settings, tmp_path: Path) -> None:
    items = [
        batch("orderbooks", 1, best_ask_price=0),
        batch("orderbooks", 1, best_bid_price=0, last_update_id=2),
    ]
    assert load(Memory(tmp_path, items)).rows == {"orderbooks": 2}


def test_quarantine_does_not_double_and_follows_the_last_run(store: Settings, tmp_path: Path) -> None:
    new = Instrument("binance", "spot", "NEWUSDT")
    items = [
        batch("trades", 3, instrument=new),
        *MIXED,
        Reject("trades", "a", 5, "p", "bad_json: \ud800" + "x" * 9999),
    ]
    known = frozenset({BTC})
    for again in (False, True, True):
        assert load(Memory(tmp_path, items), again=again, instruments=known).rejected == {"trades": 5}
        assert query("select count() from quarantine") == [(5,)]
    assert query("select max(length(reason)) <= 5000 from quarantine") == [(1,)]
    assert load(Memory(tmp_path, items), again=True, instruments=known | {new}).rows["trades"] == 3
    assert query("select count(), countIf(reason_code = 'unknown_symbol') from quarantine") == [(2, 0)]


@pytest.mark.parametrize("symbol", ["BTC/USDT", "O'NEIL-USD", "a\\b", "100%`s", "ÄÖ 币", "{x}"])
def test_any_symbol(store: Settings, tmp_path: Path, symbol: str) -> None:
    instrument = Instrument("binance", "spot", symbol)
    items = [batch("trades", 2, instrument=instrument), Watermark("trades", *instrument, T)]
    load(Memory(tmp_path, items), instruments=frozenset({instrument}))
    again = load(Memory(tmp_path, items), instruments=frozenset({instrument}), again=True)
    assert again.duplicates == {"trades": 2}
    assert (
        query("select distinct symbol from trades union all select symbol from watermarks") == [(symbol,)] * 2
    )


def test_late_and_early_receive_times(store: Settings, tmp_path: Path) -> None:
    stamps = T + np.arange(4) * 10**6
    received = stamps + np.array([6_000_000, 4_000, -1_273_000, 0])
    received[3] = 0
    load(Memory(tmp_path, [batch("trades", 4, timestamp=stamps, received_at=received)]))
    assert query(
        "select toUnixTimestamp64Micro(known_at) - toUnixTimestamp64Micro(timestamp), "
        "toUnixTimestamp64Micro(received_at) - toUnixTimestamp64Micro(timestamp) "
        "from trades order by timestamp"
    ) == [(6_000_000, 6_000_000), (0, 4_000), (0, -1_273_000), (0, None)]


def test_nothing_to_load(store: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="a: no rows"):
        load(Memory(tmp_path, [Note("x", "y"), batch("trades", 0)]))
    assert content() == content()
    assert query("select count() from loads") == [(0,)]


def test_only_rejects_is_a_load(store: Settings, tmp_path: Path) -> None:
    result = load(Memory(tmp_path, [Reject("trades", "a", 1, "", "bad_json: {")]))
    assert (result.rows, result.rejected) == ({}, {"trades": 1})
    assert load(Memory(tmp_path, [])).skipped


def test_a_source_without_a_rule(store: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source_availability\.csv does not say when trades of 'nobody'"):
        load(Memory(tmp_path, [batch("trades", 1, data_source="nobody")]))
    assert private_tables() == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"price": np.ones(1)}, "trades.price: float64"), ({"colour": "red"}, "too few or too many: colour")],
)
def test_a_reader_that_breaks_the_contract(
    store: Settings, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        load(Memory(tmp_path, [batch("trades", 1, **columns)]))
    assert private_tables() == []


def test_a_missing_file(store: Settings, tmp_path: Path) -> None:
    reader = Memory(tmp_path, MIXED)
    reader.paths[0].unlink()
    with pytest.raises(BadFileError, match="cannot be read: No such file"):
        load(reader)


def test_watermarks(store: Settings, tmp_path: Path) -> None:
    marks = [Watermark("trades", *BTC, T + i) for i in (5, 9, 7)]
    unknown = Watermark("trades", "binance", "spot", "NOSUCH", T)
    for again in (False, True):
        load(Memory(tmp_path, [batch("trades", 1), *marks, unknown]), again=again)
        assert query("select symbol, toUnixTimestamp64Micro(watermark) from watermarks") == [
            ("BTCUSDT", T + 9)
        ]


def test_progress_is_reported(store: Settings, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    reader = Memory(tmp_path, [*MIXED, Progress(10**9)], name="12345")
    load(reader, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 5), (5, 5), (5, 5)]


# --- what a death leaves -------------------------------------------------------------------------------


class Dies(Memory):
    """Stops after `after` items with an error."""

    def __init__(self, path: Path, items: Sequence[Item], after: int, error: BaseException) -> None:
        super().__init__(path, items)
        self.after, self.error = after, error

    def read(self) -> Iterator[Item]:
        yield from self.items[: self.after]
        raise self.error


@pytest.mark.parametrize("after", [0, 1, 3, len(MIXED)])
@pytest.mark.parametrize(
    "error", [BadFileError("a", "truncated", line=5), KeyError("bug"), KeyboardInterrupt()]
)
def test_a_reader_error_leaves_nothing(
    store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
) -> None:
    monkeypatch.setitem(loader.FLUSH_ROWS, "trades", 10)
    with pytest.raises(type(error)):
        load(Dies(tmp_path, MIXED, after, error))
    assert all(rows == [] for rows in content().values())
    assert query("select count() from loads") == [(0,)]


def killed(reader: Memory, arrange: Callable[[], None]) -> None:
    """Loads in a process that `arrange` makes kill itself, as kill -9 does."""
    child = os.fork()
    if child == 0:
        try:
            arrange()
            load(reader)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, calls: int = 0) -> Callable[[], None]:
    """Death instead of the call number `calls` of `owner.name`."""

    def arrange() -> None:
        real, seen = getattr(owner, name), [0]

        def patched(*args: Any, **options: Any) -> Any:
            if seen[0] == calls:
                die()
            seen[0] += 1
            return real(*args, **options)

        setattr(owner, name, patched)

    return arrange


def after(owner: Any, name: str, calls: int = 0) -> Callable[[], None]:
    """Death right after the call number `calls` of `owner.name`."""

    def arrange() -> None:
        real, seen = getattr(owner, name), [0]

        def patched(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            if seen[0] == calls:
                die()
            seen[0] += 1
            return result

        setattr(owner, name, patched)

    return arrange


DEATHS = {
    "while staging": after(loader._Stage, "_insert"),
    "before the plan": before(loader, "_plan"),
    "in the plan": before(loader, "_conversion", 2),
    "before the journal": before(Store, "write_journal"),
    "with an empty journal": before(Store, "note_step"),
    "before the move": before(loader, "_move"),
    "after a slice, before it is noted": before(Store, "note_step", 1),
    "between two kinds": before(loader, "_move_slice", 2),
    "after all slices": before(loader, "_move_rejects"),
    "before the watermarks": before(loader, "_move_watermarks"),
    "before the row in loads": before(loader, "_note_load"),
    "before the clean-up": before(Store, "drop_private", 1),
}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sends and two slices of MIXED's trades."""
    monkeypatch.setitem(loader.FLUSH_ROWS, "trades", 40)
    monkeypatch.setitem(loader.SLICE_ROWS, "trades", 60)


VIEW = """
create table seen (kind String, exchange String, n UInt64, volume Decimal(38, 8)) engine = SummingMergeTree
order by (kind, exchange) settings non_replicated_deduplication_window = 1000
"""


def with_view() -> None:
    query(VIEW)
    query(
        "create materialized view to_seen to seen as "
        "select 'trades' as kind, exchange, count() as n, sum(quantity) as volume "
        "from trades group by exchange"
    )


def seen() -> list[tuple[Any, ...]]:
    return query("select exchange, sum(n), sum(volume) from seen group by exchange order by exchange")


@pytest.mark.parametrize("name", DEATHS)
def test_killed_and_run_again(store: Settings, tmp_path: Path, small_parts: None, name: str) -> None:
    with_view()
    killed(Memory(tmp_path, MIXED), DEATHS[name])
    load(Memory(tmp_path, MIXED))
    second = (content(), seen(), query("select * except (finished_at, started_at) from loads final"))
    for table in (*COLUMNS, "quarantine", "watermarks", "loads", "seen"):
        query(f"truncate table {table}")
    load(Memory(tmp_path, MIXED))
    assert (content(), seen(), query("select * except (finished_at, started_at) from loads final")) == second
    assert seen()[0][1] == 100


def test_another_load_finishes_what_was_killed(store: Settings, tmp_path: Path, small_parts: None) -> None:
    """Overlapping rows must not be doubled, in the views neither, when the killed load comes back."""
    with_view()
    killed(Memory(tmp_path, MIXED), DEATHS["after a slice, before it is noted"])
    assert query("select count() from trades") == [(50,)]
    other = load(Memory(tmp_path, [batch("trades", 50)], name="b"))
    assert other.duplicates == {"trades": 50}
    assert load(Memory(tmp_path, MIXED)).skipped
    assert query("select count(), uniqExact(trade_id) from trades") == [(100, 100)]
    assert seen()[0][1] == 100


def test_a_killed_load_that_is_run_again_tells_its_own_result(
    store: Settings, tmp_path: Path, small_parts: None
) -> None:
    killed(Memory(tmp_path, MIXED), DEATHS["between two kinds"])
    result = load(Memory(tmp_path, MIXED))
    assert (result.skipped, result.rows) == (False, {"trades": 100, "orderbooks": 30})
    assert (result.duplicates, result.rejected) == ({"trades": 0, "orderbooks": 0}, {"trades": 1})


def test_a_view_that_fails_does_not_lose_or_double_rows(
    store: Settings, tmp_path: Path, small_parts: None
) -> None:
    with_view()
    query("create table broken (a UInt8) engine = Memory")
    query(
        "create materialized view fails to seen as select 'x' as kind, exchange, "
        "throwIf(count() > 0 and (select count() from broken) > 0)::UInt64 as n, 0 as volume "
        "from trades group by exchange"
    )
    query("insert into broken select 1")
    with pytest.raises(UserError, match=r"refused rows of .*trades: .*throwIf") as e:
        load(Memory(tmp_path, MIXED))
    assert "Stack trace" not in str(e.value)
    with pytest.raises(UserError, match="refused rows"):
        load(Memory(tmp_path, [batch("trades", 1)], name="b"))
    query("truncate table broken")
    result: LoadResult = load(Memory(tmp_path, MIXED))
    assert result.rows == {"trades": 100, "orderbooks": 30}
    assert query("select count(), uniqExact(trade_id) from trades") == [(100, 100)]
    assert query("select sum(n) from seen where kind = 'trades'") == [(100,)]


def test_two_at_once_take_turns(store: Settings, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = os.fork()
    if child == 0:
        real = loader._move

        def slow(*args: Any) -> LoadResult:
            ready.touch()
            time.sleep(1)
            return real(*args)

        try:
            loader._move = slow
            load(Memory(tmp_path, MIXED))
        finally:
            os._exit(0)
    while not ready.exists():
        time.sleep(0.01)
    assert load(Memory(tmp_path, [batch("trades", 50)], name="b")).duplicates == {"trades": 50}
    os.waitpid(child, 0)
    assert query("select count(), uniqExact(trade_id) from trades") == [(100, 100)]


def test_old_leftovers_are_removed(store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(Memory(tmp_path, MIXED), DEATHS["before the plan"])
    left = private_tables()
    assert left
    load(Memory(tmp_path, [batch("trades", 1)], name="b"))
    assert private_tables() == left  # another process may be at it
    monkeypatch.setattr(loader, "STALE_AFTER", "interval -1 day")
    load(Memory(tmp_path, [batch("trades", 1)], name="c"))
    assert private_tables() == []
