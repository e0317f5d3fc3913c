"""Binance websocket captures: each rule on a hand-made capture, and the recorded sets as a whole."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest import binance_ws
from python_udfs.ingest.binance_ws import BinanceWebsocketReader
from python_udfs.ingest.records import COLUMNS, Batch, Item, Note, Progress, Reject, Watermark

E8 = 10**8
T0 = 1_700_000_000_000  # ms; a whole multiple of 100 ms
L2, BBO = "binance_ws", "binance_ws_bookticker"
Json = dict[str, Any]


def trade(ms: int = 0, trade_id: int = 1, *, futures: bool = False, **fields: Any) -> Json:
    data = {
        "e": "trade",
        "E": T0 + ms,
        "T": T0 + ms,
        "s": "BTCUSDT",
        "t": trade_id,
        "p": "100.50",
        "q": "0.25",
        "m": True,
    }
    return {"stream": "btcusdt@trade", "data": data | ({"X": "MARKET"} if futures else {}) | fields}


def diff(
    ms: int, first: int, last: int, bids: Any = (), asks: Any = (), *, symbol: str = "BTCUSDT", **fields: Any
) -> Json:
    data = {"e": "depthUpdate", "E": T0 + ms, "s": symbol, "U": first, "u": last, "b": bids, "a": asks}
    return {"stream": f"{symbol.lower()}@depth@100ms", "data": data | fields}


def ticker(
    u: int, bid: str, bid_quantity: str, ask: str, ask_quantity: str, *, ms: int | None = None
) -> Json:
    data: Json = {"u": u, "s": "BTCUSDT", "b": bid, "B": bid_quantity, "a": ask, "A": ask_quantity}
    if ms is not None:
        data |= {"e": "bookTicker", "E": T0 + ms, "T": T0 + ms}
    return {"stream": "btcusdt@bookTicker", "data": data}


def mark(ms: int = 0, **fields: Any) -> Json:
    data = {"e": "markPriceUpdate", "E": T0 + ms, "s": "BTCUSDT", "p": "100.1", "P": "100", "i": "100.2"}
    return {"stream": "btcusdt@markPrice@1s", "data": data | {"r": "0.00002760", "T": T0 + 60_000} | fields}


def snapshot(last_id: int = 100, **fields: Any) -> Json:
    """A whole book: 99 x 1, 98 x 2 | 101 x 1, 102 x 2."""
    return {
        "lastUpdateId": last_id,
        "bids": [["99", "1"], ["98", "2"]],
        "asks": [["101", "1"], ["102", "2"]],
        **fields,
    }


def write(path: Path, messages: Iterable[Json | str], stamp: int = T0 * 1_000_000) -> Path:
    """One message a line, 1 apart in receive time; a str is a whole line."""
    lines = [
        m if isinstance(m, str) else f"{stamp + i} {orjson.dumps(m).decode()}" for i, m in enumerate(messages)
    ]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def load(*paths: Path, market_type: str | None = None) -> list[Item]:
    return list(BinanceWebsocketReader(list(paths), market_type).read())


def rows(items: list[Item], kind: str, data_source: str = L2) -> list[Json]:
    """All rows of a kind and source; checks the wire contract on the way."""
    found: list[Json] = []
    for batch in items:
        if (
            not isinstance(batch, Batch)
            or batch.kind != kind
            or batch.columns["data_source"][0] != data_source
        ):
            continue
        common = {"exchange", "market_type", "symbol", "timestamp", "received_at", "data_source"}
        assert batch.columns.keys() == common | COLUMNS[batch.kind].keys()
        assert {len(c) for c in batch.columns.values()} == {len(batch)}
        for name, column in COLUMNS[batch.kind].items():
            want = {"string": object, "uint64": np.uint64, "bool": np.uint8}.get(column, np.int64)
            assert batch.columns[name].dtype == want, name
        found += [
            dict(zip(batch.columns, values, strict=True)) | {"line": int(line), "file": batch.file}
            for *values, line in zip(*batch.columns.values(), batch.lines, strict=True)
        ]
    return found


def rejects(items: list[Item]) -> list[Reject]:
    return [item for item in items if isinstance(item, Reject)]


def notes(items: list[Item]) -> dict[str, str]:
    return {item.name: item.value for item in items if isinstance(item, Note)}


def bests(items: list[Item]) -> list[tuple[int, float, float]]:
    """(event time in ms since T0, best bid, best ask) of the L2 rows."""
    return [
        (int(r["timestamp"]) // 1000 - T0, r["best_bid_price"] / E8, r["best_ask_price"] / E8)
        for r in rows(items, "orderbooks")
    ]


# --- lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "micros"),
    [
        (1700000000123, 1700000000123000),
        (1700000000123456, 1700000000123456),
        (1700000000123456999, 1700000000123456),
    ],
)
def test_receive_times_in_ms_us_and_ns(tmp_path: Path, stamp: int, micros: int) -> None:
    (row,) = rows(load(write(tmp_path / "a", [trade()], stamp)), "trades")
    assert row["received_at"] == micros


def test_a_slow_recorder_clock_changes_no_event_time(tmp_path: Path) -> None:
    early = (T0 - 1270) * 1_000_000
    (row,) = rows(load(write(tmp_path / "a", [trade(5)], early)), "trades")
    assert row["received_at"] < row["timestamp"] == (T0 + 5) * 1000


def test_exchange_times_in_us(tmp_path: Path) -> None:
    message = trade(E=T0 * 1000 + 7, T=T0 * 1000 + 3)
    items = load(write(tmp_path / "a", [message]))
    assert rows(items, "trades")[0]["timestamp"] == T0 * 1000 + 3
    assert Watermark("trades", "binance", "spot", "BTCUSDT", T0 * 1000 + 7) in items


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a"
    line = write(path, [trade()]).read_bytes()
    path.write_bytes(b"\n\r\n" + line + b"   \n" + line.strip())
    assert [row["line"] for row in rows(load(path), "trades")] == [3, 5]


@pytest.mark.parametrize(
    ("line", "kind", "field", "reason"),
    [
        ("1700000000000 {", "trades", "", "bad_json: "),
        ("1700000000000", "trades", "", "bad_json: "),
        ("1700000000000 []", "trades", "", "bad_json: not an object"),
        ('170000000000 {"stream":"x@depth"}', "orderbooks", "received_at", "bad_time: "),
        ('-700000000000 {"stream":"x@markPrice"}', "funding_rates", "received_at", "bad_time: "),
        ('1700000000000 {"result":null,"id":1}', "trades", "stream", "unknown_stream: "),
        (
            '1700000000000 {"stream":"x@kline_1m","data":{"s":"X"}}',
            "trades",
            "stream",
            "unknown_stream: x@kline_1m",
        ),
        ('1700000000000 {"stream":"x@depth5","data":{}}', "orderbooks", "stream", "unknown_stream: x@depth5"),
        ('1700000000000 {"stream":"!markPrice@arr","data":[]}', "trades", "", "bad_json: "),
        ('1700000000000 {"stream":7,"data":{"s":"X"}}', "trades", "", "bad_json: "),
        ('1700000000000 {"stream":"x@trade"}', "trades", "data", "missing_field: data"),
        ('1700000000000 {"stream":"x@trade","data":{"E":1}}', "trades", "s", "missing_field: s"),
        ('1700000000000 {"stream":"x@trade","data":{"s":7}}', "trades", "s", "bad_number: 7"),
        ('1700000000000 {"lastUpdateId":1,"bids":[]}', "orderbooks", "asks", "missing_field: asks"),
        ('1700000000000 {"lastUpdateId":1,"bids":[],"asks":{}}', "orderbooks", "bids,asks", "bad_json: "),
        (
            '1700000000000 {"lastUpdateId":"1","bids":[],"asks":[]}',
            "orderbooks",
            "lastUpdateId",
            "bad_number: '1'",
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_rejected(
    tmp_path: Path, line: str, kind: str, field: str, reason: str
) -> None:
    items = load(write(tmp_path / "a", [trade(), line, trade(trade_id=2)]))
    (reject,) = rejects(items)
    assert (reject.kind, reject.file, reject.line, reject.field) == (kind, str(tmp_path / "a"), 2, field)
    assert reject.reason.startswith(reason)
    assert reject.raw == line
    assert len(rows(items, "trades")) == 2


def test_the_raw_text_of_a_reject_is_cut(tmp_path: Path) -> None:
    (reject,) = rejects(load(write(tmp_path / "a", [trade(), "1700000000000 {" + "x" * 9000])))
    assert len(reject.raw) == 500


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a.gz"])
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if path.suffix else content)
    with pytest.raises(BadFileError, match=r"a(\.gz)?: empty"):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="cannot be read: No such file"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    "line",
    [
        "timestamp,price,qty",
        "1626992741.06217: {}",
        "1700000000000 hello",
        "1700000000000 [1]",
        '1700000000000 {"id":1}',
    ],
)
def test_a_first_line_of_another_format_refuses_the_file(tmp_path: Path, line: str) -> None:
    with pytest.raises(BadFileError, match="not a Binance websocket capture") as e:
        load(write(tmp_path / "a", ["", line, trade()]))
    assert (e.value.file, e.value.line) == (str(tmp_path / "a"), 2)


def test_a_first_line_that_is_only_rejected_does_not_refuse_the_file(tmp_path: Path) -> None:
    items = load(write(tmp_path / "a", [trade(q="0"), trade()]))
    assert len(rejects(items)) == len(rows(items, "trades")) == 1


def test_a_truncated_gzip_is_refused_with_its_last_good_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", [trade(trade_id=i * 7919) for i in range(5000)])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadFileError, match="truncated gzip: the last good line is") as e:
        load(path)
    assert e.value.line is not None
    assert 3000 < e.value.line < 5000


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", [trade(trade_id=i * 7919) for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(BadFileError, match="damaged after line"):
        load(path)


def test_progress_is_in_bytes_of_the_files_as_they_are(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, [trade(trade_id=i) for i in range(9000)]) for name in ("a.gz", "b")]
    done = [item.done for item in load(*paths) if isinstance(item, Progress)]
    first, total = paths[0].stat().st_size, sum(p.stat().st_size for p in paths)
    assert done == sorted(done)
    assert len(done) >= 10
    assert first in done
    assert any(first < n < total for n in done)
    assert done[-1] == total


def test_batches_are_bounded_and_name_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binance_ws, "CHUNK_ROWS", 2000)
    paths = [write(tmp_path / name, [trade(trade_id=i) for i in range(5000)]) for name in ("a", "b")]
    items = load(*paths)
    assert max(len(b) for b in items if isinstance(b, Batch)) <= 2000 + binance_ws.CHECK_LINES
    assert [(r["file"], r["line"]) for r in rows(items, "trades")] == [
        (str(path), i + 1) for path in paths for i in range(5000)
    ]


# --- trades ------------------------------------------------------------------------------------------------


def test_a_trade(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        [trade(7, 42, E=T0 + 9), trade(7, 43, m=False, p="0.00000001", q="9999999999.99999999")],
    )
    sold, bought = rows(load(path), "trades")
    assert sold["timestamp"] == sold["trade_time"] == bought["timestamp"] == (T0 + 7) * 1000
    assert (sold["exchange"], sold["market_type"], sold["symbol"]) == ("binance", "spot", "BTCUSDT")
    assert (sold["trade_id"], sold["price"], sold["quantity"]) == ("42", 10_050_000_000, 25_000_000)
    assert (sold["side"], sold["is_maker"]) == ("sell", 1)
    assert (bought["trade_id"], bought["price"], bought["quantity"]) == ("43", 1, 10**18 - 1)
    assert (bought["side"], bought["is_maker"]) == ("buy", 0)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"X": "INSURANCE_FUND"}, "X", "not_a_trade: X=INSURANCE_FUND"),
        ({"X": "ADL"}, "X", "not_a_trade: X=ADL"),
        ({"p": "0.00"}, "p", "zero_price: "),
        ({"q": "0.000"}, "q", "zero_quantity: "),
        ({"q": "-1"}, "q", "bad_number: quantity -1 is below zero"),
        ({"p": "abc"}, "p", "bad_number: "),
        ({"p": ""}, "p", "bad_number: "),
        ({"p": "NaN"}, "p", "bad_number: "),
        ({"p": 100.5}, "p", "bad_number: 100.5 is not a decimal in quotes"),
        ({"p": "10000000000"}, "p", "out_of_range: "),
        ({"q": "0.000000001"}, "q", "out_of_range: "),
        ({"T": "1700000000000"}, "T", "bad_number: "),
        ({"T": 1_700_000_000}, "T", "bad_number: "),
        ({"T": -1}, "T", "bad_number: "),
        ({"t": "x"}, "t", "bad_number: "),
        ({"m": 1}, "m", "bad_json: "),
    ],
)
def test_what_is_no_trade_is_rejected(tmp_path: Path, fields: Json, field: str, reason: str) -> None:
    items = load(write(tmp_path / "a", [trade(futures=True), trade(futures=True, **fields)]))
    (reject,) = rejects(items)
    assert (reject.kind, reject.line, reject.field) == ("trades", 2, field)
    assert reject.reason.startswith(reason)
    assert len(rows(items, "trades")) == 1


@pytest.mark.parametrize("field", ["E", "T", "t", "p", "q", "m"])
def test_a_trade_without_a_field_is_rejected(tmp_path: Path, field: str) -> None:
    message = trade()
    del message["data"][field]
    (reject,) = rejects(load(write(tmp_path / "a", [trade(), message])))
    assert (reject.field, reject.reason) == (field, f"missing_field: {field}")


# --- market types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "market_type", "symbol"),
    [
        ([trade()], "spot", "BTCUSDT"),
        ([trade(futures=True)], "linear", "BTCUSDT"),
        ([trade(futures=True, s="BTCUSD_PERP")], "inverse", "BTCUSD_PERP"),
        ([trade(futures=True, s="BTCUSDT_240927")], "linear", "BTCUSDT_240927"),
        ([diff(0, 101, 101), trade()], "spot", "BTCUSDT"),
        ([diff(0, 101, 101, pu=100), trade(futures=True)], "linear", "BTCUSDT"),
        ([ticker(1, "1", "1", "2", "1"), trade()], "spot", "BTCUSDT"),
        ([ticker(1, "1", "1", "2", "1", ms=0), trade(futures=True)], "linear", "BTCUSDT"),
        ([mark(), trade(futures=True)], "linear", "BTCUSDT"),
        ([snapshot(symbol="BTCUSD_PERP", E=T0), trade(s="BTCUSD_PERP")], "inverse", "BTCUSD_PERP"),
        ([snapshot(symbol="BTCUSDT", E=T0), trade(futures=True)], "linear", "BTCUSDT"),
        ([snapshot(symbol="BTCUSDT"), trade()], "spot", "BTCUSDT"),
    ],
)
def test_the_market_is_told_from_the_messages(
    tmp_path: Path, messages: list[Json], market_type: str, symbol: str
) -> None:
    items = load(write(tmp_path / "a", messages))
    instruments = {
        (str(b.columns["market_type"][0]), str(b.columns["symbol"][0])) for b in items if isinstance(b, Batch)
    } | {(w.market_type, w.symbol) for w in items if isinstance(w, Watermark)}
    assert instruments == {(market_type, symbol)}


def test_the_market_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [trade(), diff(0, 101, 101, pu=100), snapshot(symbol="BTCUSDT")])
    reader = BinanceWebsocketReader([path], "inverse")
    assert reader.options == {"market_type": "inverse"}
    assert BinanceWebsocketReader([path]).options == {"market_type": "auto"}
    assert {w.market_type for w in reader.read() if isinstance(w, Watermark)} == {"inverse"}
    with pytest.raises(UserError, match="give one of spot, linear, inverse, option"):
        BinanceWebsocketReader([path], "perp")


# --- books -------------------------------------------------------------------------------------------------


def test_a_book_row(tmp_path: Path) -> None:
    bids = [["99.10000000", "0.50000000"], ["98", "0"]]
    path = write(tmp_path / "a", [diff(0, 90, 99), snapshot(), diff(3, 100, 101, bids)])
    (row,) = rows(load(path), "orderbooks")
    assert row["timestamp"] == (T0 + 3) * 1000
    assert row["received_at"] == T0 * 1000
    assert (row["market_type"], row["symbol"], row["line"]) == ("spot", "BTCUSDT", 3)
    assert row["last_update_id"] == 101
    assert row["bids"] == '[["99.1","0.5"],["99","1"]]'
    assert row["asks"] == '[["101","1"],["102","2"]]'
    assert (row["bids_count"], row["asks_count"]) == (2, 2)
    assert (row["best_bid_price"], row["best_bid_quantity"]) == (9_910_000_000, 50_000_000)
    assert (row["best_ask_price"], row["best_ask_quantity"]) == (10_100_000_000, 100_000_000)


def test_at_most_20_levels_a_side(tmp_path: Path) -> None:
    bids = [[str(i), "1"] for i in range(1, 99)]
    path = write(tmp_path / "a", [diff(0, 100, 100), snapshot(), diff(1, 101, 101, bids)])
    (row,) = rows(load(path), "orderbooks")
    assert [price for price, _ in orjson.loads(row["bids"])] == [str(i) for i in range(99, 79, -1)]
    assert (row["bids_count"], row["asks_count"]) == (20, 2)


def test_an_empty_side_is_zero(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        [
            diff(0, 100, 100),
            snapshot(),
            diff(1, 101, 101, [], [["101", "0"], ["102", "0"]]),
            diff(2, 102, 102, [["99", "0"], ["98", "0"]]),
        ],
    )
    no_ask, neither = rows(load(path), "orderbooks")
    assert (no_ask["best_ask_price"], no_ask["best_ask_quantity"], no_ask["asks"]) == (0, 0, "[]")
    assert (no_ask["asks_count"], no_ask["bids_count"]) == (0, 2)
    assert (neither["best_bid_price"], neither["best_bid_quantity"], neither["bids"]) == (0, 0, "[]")


def test_rows_at_changes_of_the_best_level_and_every_100_ms(tmp_path: Path) -> None:
    deep = [["90", "1"]]
    messages = [
        snapshot(),
        diff(0, 101, 101, symbol="BTCUSDT"),  # the first state
        diff(10, 102, 102, deep),  # deep, same interval: no row
        diff(20, 103, 103, [["99", "7"]]),  # quantity of the best bid
        diff(20, 104, 104, [], [["101", "3"]]),  # quantity of the best ask, at the same time
        diff(30, 105, 105, [["99", "7.00"], ["97", "1"]]),  # the same quantity again: no row
        diff(40, 106, 106, [], [["100.5", "1"]]),  # price
        diff(99, 107, 107, deep),  # still in [0, 100): no row
        diff(100, 108, 108, deep),  # the next interval
        diff(199, 109, 109, deep),  # same interval: no row
        diff(350, 110, 110, deep),  # intervals were skipped
        diff(399, 111, 111, deep),  # no row
        diff(400, 112, 112, deep),  # 50 ms later, yet in the next interval
        diff(300, 113, 113, deep),  # an event time that goes back is in no later interval: no row
    ]
    times = [
        (ms, u)
        for ms, u in (
            (int(r["timestamp"]) // 1000 - T0, int(r["last_update_id"]))
            for r in rows(load(write(tmp_path / "a", messages)), "orderbooks")
        )
    ]
    assert times == [(0, 101), (20, 103), (20, 104), (40, 106), (100, 108), (350, 110), (400, 112)]


def test_futures_follow_pu_and_may_skip_ids(tmp_path: Path) -> None:
    messages = [
        mark(),
        snapshot(E=T0),
        diff(0, 95, 105, [["99", "2"]], pu=90),
        diff(1, 180, 200, [["99", "3"]], pu=105),
        diff(2, 300, 310, [["99", "4"]], pu=200),
    ]
    items = load(write(tmp_path / "a", messages))
    assert [int(r["last_update_id"]) for r in rows(items, "orderbooks")] == [105, 200, 310]
    assert not rejects(items)


@pytest.mark.parametrize(("first", "fields"), [(103, {}), (102, {"pu": 102})])
def test_a_sequence_gap(tmp_path: Path, first: int, fields: Json) -> None:
    """Nothing is shown from the gap to the next snapshot."""
    fut = bool(fields)
    before = {"pu": 100} if fut else {}
    messages = [
        diff(0, 95, 100, **({"pu": 94} if fut else {})),
        snapshot(),
        diff(1, 101, 101, [["99", "5"]], **before),
        diff(2, first, 105, [["99.5", "1"]], **fields),
        diff(3, 106, 106, [["99.6", "1"]], **({"pu": 105} if fut else {})),
        snapshot(105),
        diff(4, 107, 107, [["99.7", "1"]], **({"pu": 106} if fut else {})),
    ]
    items = load(write(tmp_path / "a", messages))
    (reject,) = rejects(items)
    assert (reject.kind, reject.line, reject.field) == ("orderbooks", 4, "pu" if fut else "U")
    assert reject.reason == "sequence_gap: the diff follows 102, the one before ended at 101"
    assert bests(items) == [(1, 99, 101), (4, 99.7, 101)]


def test_a_gap_without_another_snapshot_is_rebuilt_from_diffs(tmp_path: Path) -> None:
    """Shown again once it settled and a spread of one tick proves it; a wide one proves nothing."""
    levels = [[str(i), "1"] for i in range(1, 91)]
    messages = [
        diff(0, 100, 100),
        snapshot(),
        diff(1, 101, 101, [["99", "5"]]),
        diff(2, 103, 103, [*levels, ["95", "1"]], [["96", "1"]]),
        diff(9_999, 104, 104),
        diff(10_002, 105, 105),
        diff(10_003, 106, 106, [], [["96", "0"], ["98", "1"]]),
        diff(10_004, 107, 107, [["97", "1"]]),
    ]
    items = load(write(tmp_path / "a", messages))
    assert [r.reason.split(":")[0] for r in rejects(items)] == ["sequence_gap"]
    assert bests(items) == [(1, 99, 101), (10_002, 95, 96), (10_004, 97, 98)]
    assert notes(items)["book_states_withheld"].startswith("3 of spot BTCUSDT")


def test_a_capture_without_a_snapshot_says_so(tmp_path: Path) -> None:
    levels = [[str(i), "1"] for i in range(1, 91)]
    messages = [
        diff(0, 5, 9, levels, [["91", "1"]]),
        diff(9_999, 10, 10),
        diff(10_000, 11, 11),
        diff(10_001, 12, 12, [["90", "2"]]),
    ]
    items = load(write(tmp_path / "a", messages))
    assert bests(items) == [(10_000, 90, 91), (10_001, 90, 91)]
    assert not rejects(items)
    assert notes(items)["books_without_snapshot"].startswith("spot BTCUSDT: built from diffs alone")


def test_diffs_that_were_sent_twice_or_out_of_order(tmp_path: Path) -> None:
    messages = [
        diff(0, 100, 100),
        snapshot(),
        diff(1, 101, 105, [["99", "5"]]),
        diff(1, 101, 105, [["99", "6"]]),
        diff(2, 106, 107, [["99", "7"]]),
        diff(2, 103, 104, [["99", "8"]]),
        diff(3, 108, 108, [["99", "9"]]),
    ]
    items = load(write(tmp_path / "a", messages))
    assert [(r.line, r.reason.split(":")[0]) for r in rejects(items)] == [
        (4, "stale_update"),
        (6, "stale_update"),
    ]
    assert [r["best_bid_quantity"] // E8 for r in rows(items, "orderbooks")] == [5, 7, 9]


def test_a_snapshot_repeated_changes_nothing(tmp_path: Path) -> None:
    body = [
        diff(1, 101, 101, [["99.5", "1"]]),
        diff(2, 102, 102, [["99.5", "0"]]),
        diff(3, 103, 103, [["90", "1"]]),
        diff(150, 104, 104),
    ]
    once = load(write(tmp_path / "a", [diff(0, 100, 100), snapshot(), *body]))
    twice = load(
        write(
            tmp_path / "b",
            [diff(0, 100, 100), snapshot(), body[0], snapshot(), *body[1:3], snapshot(), body[3]],
        )
    )
    strip = {"line", "file", "received_at"}
    assert [{k: v for k, v in r.items() if k not in strip} for r in rows(once, "orderbooks")] == [
        {k: v for k, v in r.items() if k not in strip} for r in rows(twice, "orderbooks")
    ]
    assert not rejects(twice)


def test_a_snapshot_received_after_its_diffs(tmp_path: Path) -> None:
    """They are applied under it, but shown only from the next diff on: nobody knew before."""
    messages = [
        diff(0, 90, 95, [["100", "1"]]),
        diff(1, 96, 101, [["99.5", "1"]]),
        diff(2, 102, 102, [["99.5", "2"]]),
        snapshot(),
        diff(3, 103, 103, [["97", "1"]]),
    ]
    (row,) = rows(load(write(tmp_path / "a", messages)), "orderbooks")
    assert (row["last_update_id"], row["timestamp"]) == (103, (T0 + 3) * 1000)
    assert row["bids"] == '[["99.5","2"],["99","1"],["98","2"],["97","1"]]'


def test_a_crossed_book_is_rejected_and_not_shown(tmp_path: Path) -> None:
    messages = [
        diff(0, 100, 100),
        snapshot(),
        diff(1, 101, 101, [["99", "5"]]),
        diff(2, 102, 102, [["101.5", "1"]]),
        diff(3, 103, 103, [["101.5", "0"], ["101", "1"]]),  # locked is crossed too
        diff(4, 104, 104, [["101", "0"], ["99", "6"]]),
    ]
    items = load(write(tmp_path / "a", messages))
    assert [(r.line, r.field, r.reason.split(":")[0]) for r in rejects(items)] == [
        (4, "b,a", "crossed_book"),
        (5, "b,a", "crossed_book"),
    ]
    assert bests(items) == [(1, 99, 101), (4, 99, 101)]


def test_a_malformed_level_makes_a_gap(tmp_path: Path) -> None:
    messages = [diff(0, 100, 100), snapshot(), diff(1, 101, 101, [["99", "x"]]), diff(2, 102, 102)]
    reasons = [r.reason.split(":")[0] for r in rejects(load(write(tmp_path / "a", messages)))]
    assert reasons == ["bad_number", "sequence_gap"]


@pytest.mark.parametrize(("quantity", "code"), [("0.000000001", "out_of_range"), ("1_0", "bad_number")])
def test_a_best_quantity_that_is_not_exact_is_rejected(tmp_path: Path, quantity: str, code: str) -> None:
    messages = [diff(0, 100, 100), snapshot(), diff(1, 101, 101, [["99.5", quantity]])]
    items = load(write(tmp_path / "a", messages))
    assert [r.reason.split(":")[0] for r in rejects(items)] == [code]
    assert not rows(items, "orderbooks")


def test_the_book_goes_on_in_the_next_file(tmp_path: Path) -> None:
    first = write(tmp_path / "a.gz", [diff(0, 100, 100), snapshot(), diff(1, 101, 101, [["99", "5"]])])
    second = write(tmp_path / "b.gz", [diff(2, 102, 102, [["99", "6"]])])
    items = load(first, second)
    assert not rejects(items)
    assert [(r["file"], r["line"], r["best_bid_quantity"] // E8) for r in rows(items, "orderbooks")] == [
        (str(first), 3, 5),
        (str(second), 1, 6),
    ]
    assert [r.reason.split(":")[0] for r in rejects(load(second, first))] == [
        "stale_update",
        "sequence_gap",
        "stale_update",
    ]


def test_symbols_have_books_of_their_own(tmp_path: Path) -> None:
    def book(symbol: str, u: int, bid: str) -> Json:
        return diff(u, u, u, [[bid, "1"]], symbol=symbol, pu=u - 1, ps=symbol[:6])

    messages = []
    for symbol in ("BTCUSD_PERP", "ETHUSD_PERP"):
        messages += [book(symbol, 100, "90"), snapshot(symbol=symbol, E=T0)]
    messages += [
        book("BTCUSD_PERP", 101, "99.1"),
        book("ETHUSD_PERP", 101, "99.2"),
        trade(500, s="ETHUSD_PERP"),
    ]
    items = load(write(tmp_path / "a", messages))
    assert [(r["symbol"], r["best_bid_price"] / E8) for r in rows(items, "orderbooks")] == [
        ("BTCUSD_PERP", 99.1),
        ("ETHUSD_PERP", 99.2),
    ]
    assert [w for w in items if isinstance(w, Watermark)] == [
        Watermark("orderbooks", "binance", "inverse", "BTCUSD_PERP", (T0 + 101) * 1000),
        Watermark("orderbooks", "binance", "inverse", "ETHUSD_PERP", (T0 + 500) * 1000),
        Watermark("trades", "binance", "inverse", "ETHUSD_PERP", (T0 + 500) * 1000),
    ]


def test_a_snapshot_before_all_else_waits_for_its_symbol(tmp_path: Path) -> None:
    items = load(write(tmp_path / "a", [snapshot(), diff(1, 99, 101)]))
    assert bests(items) == [(1, 99, 101)]


def test_a_snapshot_without_symbol_among_several_is_rejected(tmp_path: Path) -> None:
    other = diff(0, 7, 7, symbol="ETHUSDT")
    items = load(write(tmp_path / "a", [diff(0, 100, 100), other, snapshot(), diff(1, 101, 101)]))
    (reject,) = rejects(items)
    assert (reject.line, reject.field) == (3, "symbol")
    assert reject.reason == "unknown_symbol: the snapshot names no symbol, and the file has several"
    assert not bests(items)


def test_a_snapshot_taken_for_the_only_symbol_is_taken_back(tmp_path: Path) -> None:
    other = diff(2, 7, 7, symbol="ETHUSDT")
    messages = [
        diff(0, 100, 100),
        snapshot(),
        diff(1, 101, 101, [["99", "5"]]),
        other,
        diff(3, 102, 102, [["99", "6"]]),
    ]
    items = load(write(tmp_path / "a", messages))
    assert [(r.line, r.reason.split(":")[0]) for r in rejects(items)] == [(2, "unknown_symbol")]
    assert bests(items) == [(1, 99, 101)]


def test_a_snapshot_alone_has_no_symbol(tmp_path: Path) -> None:
    (reject,) = rejects(load(write(tmp_path / "a", [snapshot()])))
    assert reject.reason == "unknown_symbol: the snapshot names no symbol, and no other line does"


def test_loading_again_gives_the_same_items(tmp_path: Path) -> None:
    reader = BinanceWebsocketReader(
        [write(tmp_path / "a", [diff(0, 100, 100), snapshot(), diff(1, 101, 101), trade()])]
    )
    first, second = list(reader.read()), list(reader.read())
    assert rows(first, "orderbooks") == rows(second, "orderbooks")
    assert [i for i in first if not isinstance(i, Batch)] == [i for i in second if not isinstance(i, Batch)]


# --- bookTicker --------------------------------------------------------------------------------------------


def test_spot_book_ticker_is_checked_and_not_loaded(tmp_path: Path) -> None:
    messages = [
        diff(0, 100, 100),
        snapshot(),
        ticker(101, "99.00", "5.0", "101.00", "1.00"),  # before its diff
        diff(1, 101, 101, [["99", "5"]]),
        diff(2, 102, 102, [["99", "6"]]),
        ticker(103, "50", "1", "51", "1"),  # an id without a diff
        ticker(102, "99", "6", "101", "1"),  # after its diff, and after a later id
    ]
    items = load(write(tmp_path / "a", messages))
    assert not rejects(items)
    assert not rows(items, "orderbooks", BBO)
    assert notes(items)["bookticker_agreement"] == "2 of 2"
    assert notes(items)["bookticker_not_loaded"].startswith("3 messages of spot bookTicker")
    assert max(w.timestamp for w in items if isinstance(w, Watermark)) == (T0 + 2) * 1000


@pytest.mark.parametrize("after", [False, True])
def test_a_mismatch_is_rejected_and_the_book_not_used(tmp_path: Path, after: bool) -> None:
    wrong = ticker(101, "99", "5.001", "101", "1")
    matching = (
        [diff(1, 101, 101, [["99", "5"]]), wrong] if after else [wrong, diff(1, 101, 101, [["99", "5"]])]
    )
    messages = [diff(0, 100, 100), snapshot(), *matching, diff(2, 102, 102, [["99", "6"]])]
    items = load(write(tmp_path / "a", messages))
    (reject,) = rejects(items)
    assert (reject.kind, reject.line, reject.field) == ("orderbooks", 4, "u" if after else "b,a")
    assert reject.reason.startswith(
        'replay_mismatch: at update 101 the replay has ["99","5"] ["101","1"], bookTicker'
    )
    assert bests(items) == ([(1, 99, 101)] if after else [])
    assert notes(items)["bookticker_agreement"] == "0 of 1"


def test_a_disagreement_of_a_withheld_state_is_told_apart(tmp_path: Path) -> None:
    messages = [diff(0, 5, 9, [["90", "1"]], [["95", "1"]]), ticker(9, "91", "1", "95", "1")]
    items = load(write(tmp_path / "a", messages))
    assert not rejects(items)
    assert notes(items)["bookticker_agreement"] == "0 of 0 (1 disagree in states that were withheld)"


def test_futures_book_ticker_rows(tmp_path: Path) -> None:
    messages = [
        ticker(7, "99.10", "5.50", "101.00", "1", ms=3),
        ticker(8, "0.00", "0.000", "101.00", "2", ms=3),
        ticker(9, "99", "1", "0", "0", ms=4),
    ]
    items = load(write(tmp_path / "a", messages))
    both, ask_only, bid_only = rows(items, "orderbooks", BBO)
    assert both["market_type"] == "linear"
    assert (both["timestamp"], both["last_update_id"]) == ((T0 + 3) * 1000, 7)
    assert (both["bids"], both["asks"]) == ('[["99.1","5.5"]]', '[["101","1"]]')
    assert (both["best_bid_price"], both["best_bid_quantity"]) == (9_910_000_000, 550_000_000)
    assert (both["bids_count"], both["asks_count"]) == (1, 1)
    assert (ask_only["bids"], ask_only["bids_count"], ask_only["best_bid_price"]) == ("[]", 0, 0)
    assert (ask_only["best_ask_quantity"], ask_only["timestamp"]) == (2 * E8, both["timestamp"])
    assert (bid_only["asks"], bid_only["asks_count"], bid_only["best_ask_price"]) == ("[]", 0, 0)
    assert not rows(items, "orderbooks")


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"b": "101"}, "b,a", "crossed_book"),
        ({"b": "0"}, "b", "bad_number"),
        ({"a": "x"}, "a", "bad_number"),
        ({"B": "x"}, "B", "bad_number"),
        ({"A": "-1"}, "A", "bad_number"),
        ({"A": "0.000000001"}, "A", "out_of_range"),
        ({"A": 1}, "A", "bad_number"),
        ({"u": None}, "u", "bad_number"),
        ({"E": "x"}, "E", "bad_number"),
    ],
)
def test_a_malformed_book_ticker(tmp_path: Path, fields: Json, field: str, code: str) -> None:
    good = ticker(7, "99", "1", "101", "1", ms=3)
    bad = {"stream": good["stream"], "data": good["data"] | fields}
    items = load(write(tmp_path / "a", [good, bad]))
    assert [(r.line, r.field, r.reason.split(":")[0]) for r in rejects(items)] == [(2, field, code)]
    assert len(rows(items, "orderbooks", BBO)) == 1


# --- markPrice ---------------------------------------------------------------------------------------------


def test_mark_price_gives_funding_rows(tmp_path: Path) -> None:
    without_index = mark(1000, r="-0.00010000")
    del without_index["data"]["i"]
    first, second = rows(load(write(tmp_path / "a", [mark(), without_index])), "funding_rates")
    assert first["timestamp"] == T0 * 1000
    assert first["funding_rate"] == 2760
    assert first["funding_time"] == first["next_funding_time"] == (T0 + 60_000) * 1000
    assert (first["mark_price"], first["index_price"]) == (10_010_000_000, 10_020_000_000)
    assert (second["funding_rate"], second["index_price"]) == (-10_000, 0)


@pytest.mark.parametrize(
    ("fields", "field"), [({"r": ""}, "r"), ({"T": 0}, "T"), ({"p": "x"}, "p"), ({"i": 1}, "i")]
)
def test_a_malformed_mark_price(tmp_path: Path, fields: Json, field: str) -> None:
    items = load(write(tmp_path / "a", [mark(), mark(1, **fields)]))
    assert [(r.kind, r.field, r.reason.split(":")[0]) for r in rejects(items)] == [
        ("funding_rates", field, "bad_number")
    ]
    assert len(rows(items, "funding_rates")) == 1


# --- recorded ----------------------------------------------------------------------------------------------

A, B = "hftbacktest-binance-20240808", "hftbacktest-binance-20230405"
SETS = {
    "spot 2024": [f"{A}/spot_btcusdt_20240808.gz", f"{A}/spot_btcusdt_20240809.gz"],
    "linear 2024": [f"{A}/usdm_btcusdt_20240808.gz"],
    "inverse 2024": [f"{A}/cm_btcusd_perp_20240808.gz"],
    "spot 2023": [f"{B}/spot_btcusdt_20230405.dat.gz"],
    "linear 2023": [f"{B}/usdm_btcusdt_20230404.dat.gz", f"{B}/usdm_btcusdt_20230405.dat.gz"],
}
# Agreement with bookTicker at n of n shared ids; trades; trades rejected; rows of futures bookTicker.
# (COIN-M has 1,885 shared ids over two days; the second day's file is not in the store.)
EXPECTED = {
    "spot 2024": ("1072 of 1072", 9_757 + 10_147, 0, 0),
    "linear 2024": ("629 of 629", 21_313, 0, 66_089),
    "inverse 2024": ("1125 of 1125", 2_286, 0, 19_136),
    "spot 2023": ("890 of 890", 3_144, 0, 0),
    "linear 2023": ("1565 of 1565", 2_197 + 10_738 - 1, 1, 6_765 + 37_440),
}


@pytest.mark.parametrize("name", SETS)
def test_recorded_sets(recorded: Path, name: str) -> None:
    items = load(*(recorded / path for path in SETS[name]))
    agreement, trades, rejected, tickers = EXPECTED[name]
    assert notes(items)["bookticker_agreement"] == agreement
    assert [r.reason for r in rejects(items)] == ["not_a_trade: X=INSURANCE_FUND"] * rejected
    assert ("books_without_snapshot" in notes(items)) == (name == "spot 2023")
    batches = [b for b in items if isinstance(b, Batch)]
    assert {str(m) for b in batches for m in b.columns["market_type"]} == {name.split(maxsplit=1)[0]}
    assert sum(len(b) for b in batches if b.kind == "trades") == trades
    by_source = {
        s: [b.columns for b in batches if b.kind == "orderbooks" and b.columns["data_source"][0] == s]
        for s in (L2, BBO)
    }
    assert sum(len(c["timestamp"]) for c in by_source[BBO]) == tickers
    for columns in by_source[L2] + by_source[BBO]:
        bid, ask = columns["best_bid_price"].astype(np.int64), columns["best_ask_price"].astype(np.int64)
        assert (bid > 0).all()
        assert (bid < ask).all()
    books = by_source[L2]
    times = np.concatenate([c["timestamp"] for c in books])
    assert (np.diff(times) >= 0).all()
    assert np.concatenate([c["bids_count"] for c in books]).max() == 20
    # Spot and COIN-M send a diff at least every 100 ms, so hardly an interval is without a row.
    assert len(np.unique(times // binance_ws.GRID)) > 0.8 * (times[-1] - times[0]) / binance_ws.GRID


def test_recorded_rows_are_what_the_file_says(recorded: Path) -> None:
    items = load(recorded / SETS["linear 2024"][0])
    first = rows(items, "trades")[0]
    assert (first["trade_id"], first["price"], first["quantity"], first["side"]) == (
        "5266583935",
        6_180_030_000_000,
        600_000,
        "buy",
    )
    assert (first["timestamp"], first["received_at"]) == (1723161256322000, 1723161255088176)
    marks = [w.timestamp for w in items if isinstance(w, Watermark)]
    assert marks == [1723161601105000] * 2


def test_recorded_funding(recorded: Path) -> None:
    found = rows(load(*(recorded / path for path in SETS["linear 2023"])), "funding_rates")
    assert len(found) == 99 + 415
    settlement = 1680652800000 * 1000
    last_before = [r for r in found if r["funding_time"] == settlement][-1]
    assert last_before["funding_rate"] == 2760
    assert {int(r["funding_time"]) for r in found} == {settlement, 1680681600000 * 1000}


@pytest.mark.parametrize("name", ["spot 2024", "inverse 2024", "linear 2023"])
@pytest.mark.parametrize("tickers", [True, False])
def test_recorded_books_from_diffs_alone_are_never_wrong(
    recorded: Path, tmp_path: Path, name: str, tickers: bool
) -> None:
    """Begun in the middle without a snapshot, every row's best equals that of the book with one."""
    paths = [recorded / path for path in SETS[name]]
    names = ("best_bid_price", "best_bid_quantity", "best_ask_price", "best_ask_quantity")
    truth = {r["last_update_id"]: tuple(r[n] for n in names) for r in rows(load(*paths), "orderbooks")}
    lines = [line for path in paths for line in gzip.decompress(path.read_bytes()).splitlines(keepends=True)]
    lines = [
        line
        for line in lines[len(lines) // 3 :]
        if b'"stream"' in line and (tickers or b"@bookTicker" not in line)
    ]
    cut = tmp_path / "cut"
    cut.write_bytes(b"".join(lines))
    found = rows(load(cut), "orderbooks")
    compared = [
        (tuple(r[n] for n in names), truth[r["last_update_id"]])
        for r in found
        if r["last_update_id"] in truth
    ]
    assert len(compared) > 3000
    assert [pair for pair in compared if pair[0] != pair[1]] == []
