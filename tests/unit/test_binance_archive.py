"""The archive reader and, under it, the CSV helper, on small files in the published formats."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from python_udfs.errors import BadFileError
from python_udfs.ingest import csvtable
from python_udfs.ingest.binance_archive import FORMATS, BinanceArchiveReader, long_share
from python_udfs.ingest.csvtable import Rows, chunks, one_time, one_wide
from python_udfs.ingest.records import COLUMNS, INSTRUMENT, Batch, Item, Progress, Reject, Watermark

SPOT = "BTCUSDT-trades-2025-01-01.zip"
SPOT_ROWS = (
    "4300000001,93576.00000000,0.00010000,9.35760000,1735689600003045,True,True\n"
    "4300000002,93576.01000000,1.50000000,140364.01500000,1735689600010000,False,True\n"
)
UM_HEADER = "id,price,qty,quote_qty,time,is_buyer_maker\n"
UM_ROWS = "5,42000.5,0.010,420.005,1704067200123,true\n6,42000.4,0.020,840.008,1704067201000,false\n"
METRICS = (
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio\n"
)


def micros(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**6


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes text under a name, packed as its suffix says."""

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
                z.writestr(path.stem + ".csv", text)
        elif path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return path

    return _write


def read(path: Path, market_type: str) -> list[Item]:
    return list(BinanceArchiveReader([path], market_type=market_type).read())


def batches(items: list[Item], kind: str) -> list[Batch]:
    return [i for i in items if isinstance(i, Batch) and i.kind == kind]


def rejects(items: list[Item]) -> list[tuple[str, int, str, str]]:
    return [(i.kind, i.line, i.field, i.reason.split(":")[0]) for i in items if isinstance(i, Reject)]


def only(items: list[Item], kind: str) -> dict[str, list[object]]:
    """The one batch of a kind as lists, its columns seen to be exactly the contract's."""
    (batch,) = batches(items, kind)
    common = {*INSTRUMENT, "timestamp", "received_at", "data_source"}
    assert set(batch.columns) == common | set(COLUMNS[batch.kind])
    for name, column in batch.columns.items():
        assert len(column) == len(batch), name
        wire = COLUMNS[batch.kind].get(name, "string" if name in INSTRUMENT else None)
        if wire is not None:
            expected = {"e8": "int64", "time": "int64", "time?": "int64", "uint64": "uint64"}
            expected |= {"bool": "uint8", "date": "datetime64[D]"}
            assert column.dtype == np.dtype(expected.get(wire, "O")), name
    return {name: column.tolist() for name, column in batch.columns.items()}


@pytest.mark.parametrize("suffix", [".zip", ".csv", ".csv.gz"])
def test_spot_trades_without_header_in_microseconds(write: Callable[[str, str], Path], suffix: str) -> None:
    path = write(SPOT.replace(".zip", suffix), SPOT_ROWS)
    items = read(path, "spot")
    rows = only(items, "trades")
    assert rows["trade_id"] == ["4300000001", "4300000002"]
    assert rows["price"] == [9_357_600_000_000, 9_357_601_000_000]
    assert rows["quantity"] == [10_000, 150_000_000]
    assert rows["side"] == ["sell", "buy"]
    assert rows["is_maker"] == [1, 0]
    assert rows["timestamp"] == rows["trade_time"] == [1735689600003045, 1735689600010000]
    assert rows["received_at"] == [0, 0]
    assert rows["exchange"] == ["binance"] * 2
    assert rows["market_type"] == ["spot"] * 2
    assert rows["symbol"] == ["BTCUSDT"] * 2
    assert rows["data_source"] == ["binance_archive"] * 2
    assert batches(items, "trades")[0].lines.tolist() == [1, 2]
    assert items[-1] == Watermark("trades", "binance", "spot", "BTCUSDT", 1735689600010000)
    done = [i.done for i in items if isinstance(i, Progress)]
    assert done == sorted(done)
    assert 0 < done[-1] <= path.stat().st_size


@pytest.mark.parametrize("header", [UM_HEADER, "", "\ufeff" + UM_HEADER])
def test_futures_trades_with_and_without_header_in_milliseconds(
    write: Callable[[str, str], Path], header: str
) -> None:
    items = read(write("BTCUSDT-trades-2024-01-01.zip", header + UM_ROWS), "linear")
    rows = only(items, "trades")
    assert rows["timestamp"] == [1704067200123000, 1704067201000000]
    assert rows["price"] == [4_200_050_000_000, 4_200_040_000_000]
    assert rows["side"] == ["sell", "buy"]
    first = 2 if header else 1
    assert batches(items, "trades")[0].lines.tolist() == [first, first + 1]


def test_coin_m_trades_count_contracts(write: Callable[[str, str], Path]) -> None:
    text = "id,price,qty,base_qty,time,is_buyer_maker\n9,40000.0,10,0.025,1640995200000,true\n"
    rows = only(read(write("BTCUSD_PERP-trades-2022-01-01.zip", text), "inverse"), "trades")
    assert (rows["quantity"], rows["market_type"]) == ([1_000_000_000], ["inverse"])


@pytest.mark.parametrize(
    ("market_type", "text"),
    [
        ("spot", "100,93576.1,0.5,10,11,1735689600003045,TRUE,True\n"),
        ("linear", "100,93576.1,0.5,10,11,1735689600003,true\n"),
        (
            "linear",
            "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
            "100,93576.1,0.5,10,11,1735689600003,true\n",
        ),
    ],
)
def test_agg_trades_keep_apart_from_trades(
    write: Callable[[str, str], Path], market_type: str, text: str
) -> None:
    items = read(write("BTCUSDT-aggTrades-2025-01-01.zip", text), market_type)
    rows = only(items, "trades")
    assert rows["trade_id"] == ["agg:100"]
    assert rows["data_source"] == ["binance_archive_aggtrades"]
    assert (rows["side"], rows["is_maker"]) == (["sell"], [1])
    assert not [i for i in items if isinstance(i, Watermark)]


def test_book_ticker(write: Callable[[str, str], Path]) -> None:
    text = (
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time\n"
        "1,27077.3,19.35,27077.4,8.6,1684237787209,1684237787214\n"
        "2,27077.4,1,27077.4,8.6,1684237787209,1684237787215\n"
        "3,0,0,27077.4,8.6,1684237787209,1684237787216\n"
        "4,27077.3,0,27077.4,8.6,1684237787209,1684237787217\n"
    )
    items = read(write("BTCUSDT-bookTicker-2023-05-16.zip", text), "linear")
    rows = only(items, "orderbooks")
    assert rows["last_update_id"] == [1, 3]
    assert rows["timestamp"] == [1684237787214000, 1684237787216000]
    assert (rows["bids"], rows["asks"]) == (['[["27077.3","19.35"]]', "[]"], ['[["27077.4","8.6"]]'] * 2)
    assert (rows["bids_count"], rows["asks_count"]) == ([1, 0], [1, 1])
    assert rows["best_bid_price"] == [2_707_730_000_000, 0]
    assert rows["best_ask_quantity"] == [860_000_000] * 2
    assert rejects(items) == [
        ("orderbooks", 3, "best_bid_price", "crossed_book"),
        ("orderbooks", 5, "best_bid_qty", "zero_quantity"),
    ]
    assert items[-1] == Watermark("orderbooks", "binance", "linear", "BTCUSDT", 1684237787216000)


def test_book_depth(write: Callable[[str, str], Path]) -> None:
    text = "timestamp,percentage,depth,notional\n2023-01-01 00:00:08,-5.00,8003.536,533657412.3758\n"
    items = read(write("BTCUSDT-bookDepth-2023-01-01.zip", text), "linear")
    rows = only(items, "book_depths")
    assert rows["timestamp"] == [micros("2023-01-01 00:00:08")]
    assert rows["percentage"] == [-500_000_000]
    assert (rows["depth"], rows["notional"]) == (["8003.53600000"], ["533657412.37580000"])


def test_metrics_are_stamped_with_the_end_of_their_interval(write: Callable[[str, str], Path]) -> None:
    text = METRICS + (
        "2025-06-05 00:05:00,BTCUSDT,80793.3430000000000000,8458277452.5717250000000000,1.2,1.5,4,0.9\n"
        '2025-06-05 00:10:00,BTCUSDT,80795.1580000000000000,8462484848.92,"","",3,\n'
        "2025-06-05 00:15:00,BTCUSDT,0,0,1.2,1,0,0.9\n"
    )
    items = read(write("BTCUSDT-metrics-2025-06-05.zip", text), "linear")
    stamps = [micros(f"2025-06-05 00:{minute}:00") for minute in (10, 15, 20)]
    interest = only(items, "open_interests")
    assert interest["timestamp"] == stamps[:2]
    assert interest["open_interest"] == ["80793.34300000", "80795.15800000"]
    assert interest["open_interest_value"] == ["8458277452.57172500", "8462484848.92000000"]
    assert interest["count"] == [0, 0]
    top = only(items, "lsr_top_positions")
    assert top["timestamp"] == [stamps[0], stamps[2]]
    assert top["long_position_ratio"] == [60_000_000, 50_000_000]
    assert top["short_position_ratio"] == [40_000_000, 50_000_000]
    assert top["period"] == ["5m", "5m"]
    accounts = only(items, "lsr_all_accounts")
    assert accounts["timestamp"] == stamps[:2]
    assert accounts["long_account_ratio"] == [80_000_000, 75_000_000]
    assert rejects(items) == [
        ("open_interests", 4, "sum_open_interest", "out_of_range"),
        ("lsr_top_positions", 3, "sum_toptrader_long_short_ratio", "missing_field"),
        ("lsr_all_accounts", 4, "count_long_short_ratio", "out_of_range"),
    ]


def test_coin_m_open_interest_value_is_in_coin_so_not_given(write: Callable[[str, str], Path]) -> None:
    text = METRICS + '2023-06-25 00:00:00,BTCUSD_PERP,5578700,18265.00911826,"",1.5,"",0.00855776\n'
    rows = only(read(write("BTCUSD_PERP-metrics-2023-06-25.zip", text), "inverse"), "open_interests")
    assert (rows["open_interest"], rows["open_interest_value"]) == (["5578700.00000000"], ["0"])


def test_metrics_of_another_symbol_are_not_loaded(write: Callable[[str, str], Path]) -> None:
    text = METRICS + "2025-06-05 00:05:00,ETHUSDT,1,1,1,1,1,1\n"
    path = write("BTCUSDT-metrics-2025-06-05.zip", text)
    with pytest.raises(
        BadFileError, match=r"metrics-2025-06-05\.zip:2 \[symbol\]: 'ETHUSDT' in a file named"
    ):
        read(path, "linear")


@pytest.mark.parametrize(
    ("ratio", "share"), [("1", 50_000_000), ("2", 66_666_667), ("0.5", 33_333_333), ("1.1645", 53_799_954)]
)
def test_long_share_is_rounded_to_eight_decimals(ratio: str, share: int) -> None:
    assert long_share(ratio) == share


@pytest.mark.parametrize("header", ["calc_time,funding_interval_hours,last_funding_rate\n", ""])
def test_funding_time_is_rounded_to_the_second(write: Callable[[str, str], Path], header: str) -> None:
    text = header + "1704067200007,8,0.00037409\n1704095999998,8,-0.0001\n1704124800000,0,0.0001\n"
    items = read(write("BTCUSDT-fundingRate-2024-01.zip", text), "linear")
    rows = only(items, "funding_rates")
    assert rows["timestamp"] == [1704067200007000, 1704095999998000]
    assert rows["funding_time"] == [1704067200000000, 1704096000000000]
    assert rows["next_funding_time"] == [1704096000000000, 1704124800000000]
    assert rows["funding_rate"] == [37_409, -10_000]
    assert rejects(items)[0][2:] == ("funding_interval_hours", "out_of_range")


LIQUIDATION = (
    "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,"
    "last_fill_quantity,accumulated_fill_quantity\n"
)


@pytest.mark.parametrize(
    "text",
    [
        LIQUIDATION + "1687656473356,BUY,LIMIT,IOC,43,30756.6,30631.6,FILLED,1,43\n",
        "1687656473356,BUY,LIMIT,IOC,43,30756.6,30631.6,FILLED,1,43\n",
        "symbol," + LIQUIDATION + "BTCUSD_PERP,1687656473356,BUY,LIMIT,IOC,43,1,30631.6,FILLED,1,43\n",
        "BTCUSD_PERP,1687656473356,BUY,LIMIT,IOC,43,30756.6,30631.6,FILLED,1,43\n",
    ],
)
def test_liquidations_at_their_average_price(write: Callable[[str, str], Path], text: str) -> None:
    items = read(write("BTCUSD_PERP-liquidationSnapshot-2023-06-25.zip", text), "inverse")
    rows = only(items, "liquidations")
    assert (rows["side"], rows["price"], rows["quantity"]) == (["buy"], [3_063_160_000_000], [4_300_000_000])
    assert rows["timestamp"] == rows["liquidation_time"] == [1687656473356000]


def test_bvol_index(write: Callable[[str, str], Path]) -> None:
    text = (
        "calc_time,symbol,base_asset,quote_asset,index_value\n"
        "1775001600002,BTCBVOLUSDT,BTCBVOL,USDT,54.0601\n"
    )
    rows = only(read(write("BTCBVOLUSDT-BVOLIndex-2026-04-01.zip", text), "option"), "volatility_indices")
    assert rows["symbol"] == ["BTCBVOLUSDT"]
    assert rows["index_value"] == [5_406_010_000]
    assert rows["underlying_asset"] == ["BTC"]
    assert [str(d) for d in rows["maturity_date"]] == ["2026-05-01"]


def test_bad_rows_are_named_and_the_others_kept(write: Callable[[str, str], Path]) -> None:
    text = UM_HEADER + (
        "1,42000.5,0.01,1,1704067200123,true\n"
        "2,abc,0.01,1,1704067200123,true\n"
        "3,42000.5,0,1,1704067200123,true\n"
        "4,42000.5,0.123456789,1,1704067200123,true\n"
        "5,42000.5,0.01,1,170406720,true\n"
        "6,42000.5,0.01,1,1704067200123,maybe\n"
        "x,42000.5,0.01,1,1704067200123,true\n"
        "8,,0.01,1,1704067200123,true\n"
        "\n"
        "9,42000.5,0.01,1,yesterday,true\n"
        "10,-1,0.01,1,1704067200123,true\n"
        "11,1e999999,0.01,1,1704067200123,true\n"
        "12,1e1,1e-8,1,1704067200123,true"
    )
    items = read(write("BTCUSDT-trades-2024-01-01.zip", text), "linear")
    rows = only(items, "trades")
    assert rows["trade_id"] == ["1", "12"]
    assert (rows["price"][1], rows["quantity"][1]) == (1_000_000_000, 1)
    assert batches(items, "trades")[0].lines.tolist() == [2, 14]
    assert rejects(items) == [
        ("trades", 3, "price", "bad_number"),
        ("trades", 4, "qty", "zero_quantity"),
        ("trades", 5, "qty", "out_of_range"),
        ("trades", 6, "time", "out_of_range"),
        ("trades", 7, "is_buyer_maker", "bad_value"),
        ("trades", 8, "id", "bad_number"),
        ("trades", 9, "price", "missing_field"),
        ("trades", 11, "time", "bad_time"),
        ("trades", 12, "price", "out_of_range"),
        ("trades", 13, "price", "bad_number"),
    ]
    first = next(i for i in items if isinstance(i, Reject))
    assert first.raw == "2,abc,0.01,1,1704067200123,true"
    assert first.reason == "bad_number: 'abc' is not a number"


def test_rows_and_lines_hold_across_blocks(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csvtable, "BLOCK_BYTES", 100)
    lines = [f"{i},1{i}.5,0.01,1,{1704067200000 + i},true" for i in range(50)]
    lines[20] = lines[20].replace("0.01", "none")
    lines.insert(30, "")
    for ending in ("\n", "\r\n"):
        items = read(write("BTCUSDT-trades-2024-01-01.csv", UM_HEADER + ending.join(lines)), "linear")
        parts = batches(items, "trades")
        assert len(parts) > 10
        numbers = [line for b in parts for line in b.lines.tolist()]
        assert numbers == [line for line in range(2, 53) if line not in (22, 32)]
        ids = [i for b in parts for i in b.columns["trade_id"].tolist()]
        assert ids == [str(i) for i in range(50) if i != 20]
        assert rejects(items) == [("trades", 22, "qty", "bad_number")]


def bad_file(path: Path, market_type: str = "linear") -> BadFileError:
    with pytest.raises(BadFileError) as caught:
        read(path, market_type)
    assert str(path) in str(caught.value)
    return caught.value


def test_wrong_columns_are_named(write: Callable[[str, str], Path]) -> None:
    name = "BTCUSDT-trades-2024-01-01.csv"
    assert bad_file(write(name, UM_HEADER.replace("qty,", "size,", 1) + UM_ROWS)).field == "qty"
    error = bad_file(write(name, UM_HEADER + UM_ROWS + "7,1,1\n"))
    assert (error.line, error.reason[:9]) == (4, "3 columns")
    error = bad_file(write(name, UM_HEADER + UM_ROWS + '7,"1,1,1,1704067200123,true\n'))
    assert error.line == 4
    error = bad_file(write(name, UM_HEADER.replace("qty,", "price,", 1) + UM_ROWS))
    assert (error.line, error.field) == (1, "price")
    # A spot file said to be linear.
    assert "check the market type" in bad_file(write(name, SPOT_ROWS)).reason


def test_damaged_files_are_named(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    text = "".join(
        f"{i},{rng.integers(1, 10**6)}.5,{rng.random():.8f},1,{1704067200000 + i},true\n" for i in range(5000)
    )
    whole = write("BTCUSDT-trades-2024-01-01.zip", text)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    assert "damaged" in bad_file(whole).reason
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    whole.write_bytes(bytes(flipped))
    assert "damaged" in bad_file(whole).reason
    whole.write_text("<html>blocked</html>")
    assert "not a zip file" in bad_file(whole).reason
    with zipfile.ZipFile(whole, "w") as z:
        z.writestr("a.csv", "1")
        z.writestr("b.csv", "2")
    assert "found 2: a.csv, b.csv" in bad_file(whole).reason
    gz = write("BTCUSDT-trades-2024-01-01.csv.gz", text)
    gz.write_bytes(gz.read_bytes()[:-20])
    assert "damaged" in bad_file(gz).reason
    for name in ("BTCUSDT-trades-2024-01-01.csv", "BTCUSDT-trades-2024-01-01.zip"):
        assert "empty" in bad_file(write(name, "")).reason
    assert "empty" in bad_file(write("BTCUSDT-trades-2024-01-01.csv", "\n\n")).reason
    latin = tmp_path / "BTCUSDT-trades-2024-01-02.csv"
    latin.write_bytes(UM_HEADER.encode() + b"1,4\xe9,1,1,1704067200123,true\n")
    assert (error := bad_file(latin)).line == 2
    assert "UTF-8" in error.reason
    assert "No such file" in bad_file(tmp_path / "BTCUSDT-trades-2024-01-03.zip").reason


def test_a_header_without_rows_is_no_fault(write: Callable[[str, str], Path]) -> None:
    assert read(write("BTCUSDT-trades-2024-01-01.zip", UM_HEADER), "linear") == []


def test_the_name_must_say_what_the_file_is(write: Callable[[str, str], Path]) -> None:
    for name in ("trades.zip", "BTCUSDT-klines-2024-01-01.zip", "BTCUSDT-trades-2024.zip"):
        assert "the name must be" in bad_file(write(name, UM_HEADER + UM_ROWS)).reason
    path = write("BTCUSDT-metrics-2024-01-01.zip", METRICS)
    assert "not for spot" in bad_file(path, "spot").reason
    with pytest.raises(ValueError, match="market_type"):
        BinanceArchiveReader([], market_type="um")


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_layout_holds_the_columns_that_are_used(kind: str) -> None:
    for layouts in FORMATS[kind].layouts.values():
        for layout in layouts:
            assert set(FORMATS[kind].used) <= set(layout)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000", 1700000000000000),
        ("1700000000123", 1700000000123000),
        ("1700000000123456", 1700000000123456),
        ("1700000000123456789", 1700000000123456),
        ("2023-11-14T22:13:20Z", 1700000000000000),
        ("2023-11-15 06:13:20.5+08:00", 1700000000500000),
    ],
)
def test_times_of_any_unit(write: Callable[[str, str], Path], text: str, expected: int) -> None:
    assert one_time(text) == expected
    (chunk,) = chunks(write("t.csv", f"at,x\n{text},1\n"))
    assert Rows(chunk, "tickers").time("at").tolist() == [expected]


def test_a_given_unit_is_not_guessed() -> None:
    assert one_time("1700000000123", "ms") == 1700000000123000
    with pytest.raises(ValueError, match="out_of_range"):
        one_time("1700000000123", "s")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-0", "0.00000000"),
        ("1e-9", "0.00000000"),
        ("0.000000015", "0.00000002"),
        ("1e20", "1" + "0" * 20 + ".00000000"),
    ],
)
def test_wide_numbers_are_plain(text: str, expected: str) -> None:
    assert one_wide(text) == expected


@pytest.mark.parametrize("text", ["nan", "Infinity", "1_000", "", "0x10", "1e30", "--1"])
def test_wide_refuses_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"bad_number|out_of_range"):
        one_wide(text)


def test_a_blank_time_may_mean_none(write: Callable[[str, str], Path]) -> None:
    (chunk,) = chunks(write("t.csv", "at,x\n,1\n1700000000123,2\nsoon,3\n"))
    rows = Rows(chunk, "tickers")
    assert rows.time("at", blank=0).tolist() == [0, 1700000000123000, 0]
    (reject, batch) = rows.items({"x": "1"})
    assert isinstance(reject, Reject)
    assert isinstance(batch, Batch)
    assert (reject.line, batch.lines.tolist()) == (4, [2, 3])
