"""The Tardis reader on small files in the published formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from python_udfs.errors import BadFileError
from python_udfs.ingest.records import COLUMNS, INSTRUMENT, Batch, Item, Progress, Reject
from python_udfs.ingest.tardis import TardisReader, instrument

TRADES = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"
TICKER = (
    "exchange,symbol,timestamp,local_timestamp,funding_timestamp,funding_rate,predicted_funding_rate,"
    "open_interest,last_price,index_price,mark_price\n"
)
BOOK_LEVELS = ",".join(
    f"asks[{i}].price,asks[{i}].amount,bids[{i}].price,bids[{i}].amount" for i in range(25)
)
BOOK = f"exchange,symbol,timestamp,local_timestamp,{BOOK_LEVELS}\n"
T, L = 1_583_020_803_145_000, 1_583_020_803_307_160


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str, str], list[Item]]:
    def _read(name: str, text: str) -> list[Item]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
        return list(TardisReader([path]).read())

    return _read


def only(items: list[Item], kind: str) -> dict[str, list[object]]:
    (batch,) = [i for i in items if isinstance(i, Batch) and i.kind == kind]
    common = {*INSTRUMENT, "timestamp", "received_at", "data_source"}
    assert set(batch.columns) == common | set(COLUMNS[batch.kind])
    assert {len(c) for c in batch.columns.values()} == {len(batch)}
    return {name: column.tolist() for name, column in batch.columns.items()}


def rejects(items: list[Item]) -> list[tuple[str, int, str, str]]:
    return [(i.kind, i.line, i.field, i.reason.split(":")[0]) for i in items if isinstance(i, Reject)]


def test_trades(read: Callable[[str, str], list[Item]]) -> None:
    text = TRADES + (
        f"bitmex,XBTUSD,{T},{L},ccc3c1fa-212c,sell,8531.5,2152\n"
        f"bitmex,XBTUSD,{T + 1},{L},ddd4d2fb-313d,buy,8532,1e-7\n"
        f"bitmex,XBTUSD,{T},{L},a,unknown,8531.5,1\n"
        f"bitmex,XBTUSD,{T},{L},,buy,8531.5,1\n"
        f"bitmex,XBTUSD,{T},{L},b,buy,8531.5,0\n"
        f"ftx,BTC-PERP,{T},{L},c,buy,8531.5,1\n"
        f"binance-futures,BTCUSDT,{T},,d,buy,8531.5,1\n"
    )
    items = read("bitmex_trades_2020-03-01_XBTUSD.csv.gz", text)
    rows = only(items, "trades")
    assert rows["trade_id"] == ["ccc3c1fa-212c", "ddd4d2fb-313d", "d"]
    assert rows["side"] == ["sell", "buy", "buy"]
    assert rows["is_maker"] == [1, 0, 0]
    assert rows["price"] == [853_150_000_000, 853_200_000_000, 853_150_000_000]
    assert rows["quantity"] == [215_200_000_000, 10, 100_000_000]
    assert rows["timestamp"] == rows["trade_time"] == [T, T + 1, T]
    assert rows["received_at"] == [L, L, 0]
    assert rows["exchange"] == ["bitmex", "bitmex", "binance"]
    assert rows["market_type"] == ["inverse", "inverse", "linear"]
    assert rows["symbol"] == ["XBTUSD", "XBTUSD", "BTCUSDT"]
    assert set(rows["data_source"]) == {"tardis"}
    assert rejects(items) == [
        ("trades", 4, "side", "bad_value"),
        ("trades", 5, "id", "missing_field"),
        ("trades", 6, "amount", "zero_quantity"),
        ("trades", 7, "symbol", "unknown_symbol"),
    ]
    assert isinstance(items[-1], Progress)


def test_liquidations_keep_the_side_of_the_order(read: Callable[[str, str], list[Item]]) -> None:
    # The layout of the datasets API: the data type is a folder.
    text = TRADES + f"binance-delivery,BTCUSD_PERP,{T},{L},,sell,8531.5,3\n"
    rows = only(read("binance-delivery/liquidations/2021/01/01/BTCUSD_PERP.csv.gz", text), "liquidations")
    assert (rows["side"], rows["market_type"]) == (["sell"], ["inverse"])
    assert (rows["price"], rows["quantity"]) == ([853_150_000_000], [300_000_000])
    assert rows["liquidation_time"] == rows["timestamp"] == [T]


def test_derivative_ticker_gives_what_a_row_has(read: Callable[[str, str], list[Item]]) -> None:
    settlement = 1_583_049_600_000_000
    text = TICKER + (
        f"binance-futures,BTCUSDT,{T},{L},{settlement},0.0001,,34653.577,8531.5,8530.25,8531.01\n"
        f"binance-futures,BTCUSDT,{T + 1},{L},,,,34653.6,8531.5,,\n"
        f"binance-futures,BTCUSDT,{T + 2},{L},{settlement},-0.00005,,,,,\n"
        f"deribit,BTC-PERPETUAL,{T},{L},,0.0001,,1e9,,,\n"
        f"binance-futures,BTCUSDT,{T + 3},{L},,,,,8531.5,,\n"
    )
    items = read("binance-futures_derivative_ticker_2020-03-01_BTCUSDT.csv.gz", text)
    funding = only(items, "funding_rates")
    assert funding["timestamp"] == [T, T + 2]
    assert funding["funding_rate"] == [10_000, -5_000]
    assert funding["funding_time"] == [settlement, settlement]
    assert funding["next_funding_time"] == [0, 0]
    assert funding["mark_price"] == [853_101_000_000, 0]
    assert funding["index_price"] == [853_025_000_000, 0]
    interest = only(items, "open_interests")
    assert interest["timestamp"] == [T, T + 1, T]
    assert interest["open_interest"] == ["34653.57700000", "34653.60000000", "1000000000.00000000"]
    assert interest["open_interest_value"] == ["0"] * 3
    assert interest["market_type"] == ["linear", "linear", "inverse"]
    assert rejects(items) == [("funding_rates", 5, "funding_timestamp", "missing_field")]


def book_row(time: int, asks: list[tuple[str, str]], bids: list[tuple[str, str]]) -> str:
    cells = ["binance", "BTCUSDT", str(time), str(L)]
    for i in range(25):
        for side in (asks, bids):
            cells += side[i] if i < len(side) else ("", "")
    return ",".join(cells) + "\n"


def test_book_snapshots_keep_twenty_levels(read: Callable[[str, str], list[Item]]) -> None:
    asks = [(f"{9000 + i}.5", f"{i + 1}") for i in range(25)]
    bids = [(f"{9000 - i}", "1e-7" if i == 1 else "2.5") for i in range(25)]
    gap = [*bids[:2], ("", ""), *bids[3:]]
    text = BOOK + (
        book_row(T, asks, bids)
        + book_row(T + 1, asks[:1], gap)
        + book_row(T + 2, asks, [])
        + book_row(T + 3, [("9000", "1")], [("9000", "1")])
        + book_row(T + 4, [("9000", "1"), ("9001", "x")], [])
        + book_row(T + 5, [("9000", "1"), ("9001", "")], [])
        + book_row(T + 6, [("9000", "0")], [])
        + book_row(T + 7, [], [])
    )
    items = read("binance_book_snapshot_25_2020-03-01_BTCUSDT.csv.gz", text)
    rows = only(items, "orderbooks")
    assert rows["timestamp"] == rows["last_update_id"] == [T, T + 1, T + 2, T + 7]
    assert rows["asks_count"] == [20, 1, 20, 0]
    assert rows["bids_count"] == [20, 2, 0, 0]
    first_asks, first_bids = (json.loads(str(rows[side][0])) for side in ("asks", "bids"))
    assert first_asks == [list(level) for level in asks[:20]]
    assert first_bids[:2] == [["9000", "2.5"], ["8999", "0.0000001"]]
    assert len(first_bids) == 20
    assert rows["bids"][1] == '[["9000","2.5"],["8999","0.0000001"]]'
    assert rows["bids"][2:] == ["[]", "[]"]
    assert rows["asks"][3] == "[]"
    assert rows["best_ask_price"] == [900_050_000_000] * 3 + [0]
    assert rows["best_ask_quantity"] == [100_000_000] * 3 + [0]
    assert rows["best_bid_price"] == [900_000_000_000] * 2 + [0, 0]
    assert rejects(items) == [
        ("orderbooks", 5, "bids[0].price", "crossed_book"),
        ("orderbooks", 6, "asks[1].amount", "bad_number"),
        ("orderbooks", 7, "asks[1].amount", "missing_field"),
        ("orderbooks", 8, "asks[0].amount", "zero_quantity"),
    ]


@pytest.mark.parametrize(
    ("exchange", "symbol", "expected"),
    [
        ("binance", "BTCUSDT", ("binance", "spot")),
        ("bybit", "BTCUSDT", ("bybit", "linear")),
        ("bybit", "BTCUSD", ("bybit", "inverse")),
        ("bybit", "BTCUSDH24", ("bybit", "inverse")),
        ("bybit-spot", "BTCUSDT", ("bybit", "spot")),
        ("okex", "BTC-USDT", ("okx", "spot")),
        ("okex-swap", "BTC-USD-SWAP", ("okx", "inverse")),
        ("okex-swap", "BTC-USDT-SWAP", ("okx", "linear")),
        ("deribit", "BTC-PERPETUAL", ("deribit", "inverse")),
        ("deribit", "ETH-30DEC22", ("deribit", "inverse")),
        ("deribit", "BTC-30DEC22-20000-C", ("deribit", "option")),
        ("deribit", "SOL_USDC-PERPETUAL", ("deribit", "linear")),
        ("bitmex", "XBTUSD", ("bitmex", "inverse")),
        ("bitmex", "ETHUSDT", ("bitmex", "linear")),
    ],
)
def test_instruments(exchange: str, symbol: str, expected: tuple[str, str]) -> None:
    assert instrument(exchange, symbol) == expected


@pytest.mark.parametrize(
    ("exchange", "symbol"),
    [
        ("bitmex", "ETHUSD"),
        ("kraken", "BTCUSD"),
        ("deribit", "BTC_USDC"),
        ("bybit", "BTCEUR"),
        ("binance", ""),
    ],
)
def test_unknown_instruments_are_not_guessed(exchange: str, symbol: str) -> None:
    with pytest.raises(ValueError, match="unknown_symbol: no market type"):
        instrument(exchange, symbol)


def test_faults_of_files_are_named(read: Callable[[str, str], list[Item]], tmp_path: Path) -> None:
    name = "bitmex_trades_2020-03-01_XBTUSD.csv.gz"
    row = f"bitmex,XBTUSD,{T},{L},a,sell,8531.5,1\n"
    with pytest.raises(BadFileError, match=r"csv\.gz:1 \[amount\]"):
        read(name, TRADES.replace("amount", "size") + row)
    with pytest.raises(BadFileError, match=r"csv\.gz:3: 7 columns where 8 are expected"):
        read(name, TRADES + row + "bitmex,XBTUSD,1,1,a,sell,8531.5\n")
    with pytest.raises(BadFileError, match="the name must be"):
        read("XBTUSD.csv.gz", TRADES + row)
    whole = gzip.compress((TRADES + row * 1000).encode())
    (tmp_path / name).write_bytes(whole[:-30])
    with pytest.raises(BadFileError, match="truncated or damaged"):
        list(TardisReader([tmp_path / name]).read())
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadFileError, match="empty"):
        list(TardisReader([tmp_path / name]).read())
    assert read(name, TRADES) == []
