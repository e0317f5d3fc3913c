"""MappedReader: what a mapping can say, in CSV and Parquet, and every way in which it can be wrong."""

from __future__ import annotations

import gzip
import json
import zipfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_udfs.errors import BadFileError
from python_udfs.ingest import mapping as mapping_module
from python_udfs.ingest.mapping import MappedReader, scaled_e8
from python_udfs.ingest.records import COLUMNS, INSTRUMENT, Batch, Item, Progress, Reject, Watermark

EXAMPLE = Path(mapping_module.__file__).parent / "mappings" / "example_trades.yml"
HEAD = "exchange: alpha\nmarket_type: spot\nsymbol: AAAUSDT\n"
TRADES = f"""{HEAD}kind: trades
columns:
  timestamp: {{column: ts, unit: ms}}
  trade_id: {{column: id}}
  price: {{column: px}}
  quantity: {{column: qty}}
  side: {{column: side, values: {{b: buy, s: sell}}}}
"""
T = 1_700_000_000_000
ROW = f"{T},1,100.5,0.25,b"


def reader(folder: Path, yaml: str, content: str | bytes | pa.Table, name: str = "data.csv") -> MappedReader:
    path = folder / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "map.yml").write_text(yaml)
    return MappedReader([path], folder / "map.yml")


def collect(read: MappedReader) -> tuple[dict[str, list[Any]], list[Reject], list[Item]]:
    """(all rows by column, the rejects, all items)."""
    items = list(read.read())
    columns: dict[str, list[Any]] = {}
    for batch in (item for item in items if isinstance(item, Batch)):
        assert set(batch.columns) == {
            *INSTRUMENT, "timestamp", "received_at", "data_source", *COLUMNS[batch.kind]
        }  # fmt: skip
        assert {len(values) for values in batch.columns.values()} == {len(batch)}
        for name, values in batch.columns.items():
            columns.setdefault(name, []).extend(values.tolist())
        columns.setdefault("line", []).extend(batch.lines.tolist())
    return columns, [item for item in items if isinstance(item, Reject)], items


def load(
    folder: Path, yaml: str, content: str | bytes | pa.Table, name: str = "data.csv"
) -> tuple[dict[str, list[Any]], list[Reject], list[Item]]:
    return collect(reader(folder, yaml, content, name))


def codes(refused: list[Reject]) -> list[tuple[int, str, str]]:
    return [(r.line, r.field, r.reason.split(":")[0]) for r in refused]


def mapped(kind: str, **columns: str) -> str:
    """A mapping with one flow-style source a column."""
    return f"{HEAD}kind: {kind}\ncolumns:\n" + "".join(f"  {k}: {{{v}}}\n" for k, v in columns.items())


# --- CSV -----------------------------------------------------------------------------------------------


def test_the_example_mapping(tmp_path: Path) -> None:
    csv = "ts,pair,id,taker,px,contracts\n1723161255313,BTC/USDT,9001,b,61800.20,150\n"
    csv += "1723161255314,ETH/USDT,9002,s,2500.10,7\n1723161255315,XRP/USDT,9003,s,1,1\n"
    columns, refused, items = load(tmp_path, EXAMPLE.read_text(), csv)
    assert columns["symbol"] == ["BTCUSDT", "ETHUSDT"]
    assert columns["exchange"] == ["binance"] * 2
    assert columns["market_type"] == ["linear"] * 2
    assert columns["timestamp"] == columns["trade_time"] == [1723161255313000, 1723161255314000]
    assert columns["price"] == [6180020000000, 250010000000]
    assert columns["quantity"] == [15_000_000, 700_000]  # contracts of 0.001
    assert columns["side"] == ["buy", "sell"]
    assert columns["is_maker"] == [0, 1]
    assert columns["received_at"] == [0, 0]
    assert codes(refused) == [(4, "pair", "unmapped_value")]
    assert refused[0].reason == "unmapped_value: 'XRP/USDT' is none of BTC/USDT, ETH/USDT"
    assert [item for item in items if isinstance(item, Watermark)] == [
        Watermark("trades", "binance", "linear", "BTCUSDT", 1723161255313000),
        Watermark("trades", "binance", "linear", "ETHUSDT", 1723161255314000),
    ]


@pytest.mark.parametrize("packing", ["plain", "gz", "zip"])
def test_packings_and_progress(tmp_path: Path, packing: str) -> None:
    text = f"ts,id,px,qty,side\n{ROW}\n".encode()
    name = {"plain": "data.csv", "gz": "data.csv.gz", "zip": "data.zip"}[packing]
    if packing == "zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("data.csv", text)
        content = (tmp_path / name).read_bytes()
    else:
        content = gzip.compress(text) if packing == "gz" else text
    columns, _, items = load(tmp_path, TRADES, content, name)
    assert columns["price"] == [10_050_000_000]
    assert columns["line"] == [2]
    done = [item.done for item in items if isinstance(item, Progress)]
    assert done and 0 < done[-1] <= len(content)


def test_no_header_by_position(tmp_path: Path) -> None:
    yaml = mapped(
        "trades", timestamp="column: 0, unit: ms", trade_id="column: 1", price="column: 2",
        quantity="column: 3", side="column: 4, values: {b: buy, s: sell}",
    ) + "header: false\n"  # fmt: skip
    columns, _, _ = load(tmp_path, yaml, f"{ROW}\n{ROW}\n")
    assert columns["trade_id"] == ["1", "1"]
    assert columns["line"] == [1, 2]


def test_a_name_goes_before_a_position(tmp_path: Path) -> None:
    yaml = TRADES.replace("column: px", "column: 1").replace("column: id", "column: '1'")
    columns, _, _ = load(tmp_path, yaml, f"ts,qty,side,1\n{T},0.5,b,7\n")
    assert columns["price"] == [7 * 10**8]


def test_yaml_that_looks_like_booleans_and_numbers_stays_text(tmp_path: Path) -> None:
    yaml = TRADES.replace("{b: buy, s: sell}", "{y: buy, n: sell, 1: buy, true: sell}")
    yaml += "  is_maker: {column: m, values: {on: true, off: false}}\n"
    csv = f"ts,id,px,qty,side,m\n{T},1,1,1,y,on\n{T},2,1,1,n,off\n{T},3,1,1,1,on\n{T},4,1,1,true,maybe\n"
    columns, refused, _ = load(tmp_path, yaml, csv)
    assert columns["side"] == ["buy", "sell", "buy"]
    assert columns["is_maker"] == [1, 0, 1]
    assert codes(refused) == [(5, "m", "unmapped_value")]


@pytest.mark.parametrize(
    ("unit", "text", "micros"),
    [
        ("s", "1700000000", T * 1000),
        ("s", "1700000000.1234567", T * 1000 + 123456),
        ("s", "1.7000000001e9", T * 1000 + 100_000),
        ("ms", "1700000000000", T * 1000),
        ("ms", "1700000000000.5", T * 1000 + 500),
        ("us", "1700000000000001", T * 1000 + 1),
        ("ns", "1700000000000001999", T * 1000 + 1),
        ("iso", "2023-11-14T22:13:20Z", T * 1000),
        ("iso", "2023-11-15 06:13:20.000001+08:00", T * 1000 + 1),
        ("iso", "2023-11-14 22:13:20", T * 1000),
    ],
)
def test_time_units(tmp_path: Path, unit: str, text: str, micros: int) -> None:
    yaml = TRADES.replace("unit: ms", f"unit: {unit}")
    columns, refused, _ = load(tmp_path, yaml, f"ts,id,px,qty,side\n{text},1,1,1,b\n")
    assert refused == []
    assert columns["timestamp"] == [micros]


@pytest.mark.parametrize("text", ["1700000000", "abc", "", "1700000000000x", "-1700000000000", "1.5.2"])
def test_times_that_are_none(tmp_path: Path, text: str) -> None:
    """A time in another unit than the mapping says is refused, not read as 1970."""
    columns, refused, _ = load(tmp_path, TRADES, f"ts,id,px,qty,side\n{text},1,1,1,b\n{ROW}\n")
    assert columns["line"] == [3]
    assert [(r.line, r.field) for r in refused] == [(2, "ts")]


def test_optional_times_may_be_blank(tmp_path: Path) -> None:
    yaml = mapped(
        "funding_rates", timestamp="column: t, unit: s", received_at="column: r, unit: s",
        funding_rate="column: f, scale: 0.01", funding_time="column: t, unit: s",
        next_funding_time="column: n, unit: s", mark_price="value: 0", index_price="value: 0",
    )  # fmt: skip
    csv = "t,r,f,n\n1700000000,,0.01,\n1700000000,1700000001.5,-0.0025,1700028800\n,1,1,1\n"
    columns, refused, _ = load(tmp_path, yaml, csv)
    assert columns["received_at"] == [0, 1700000001_500000]
    assert columns["next_funding_time"] == [0, 1700028800_000000]
    assert columns["funding_rate"] == [10_000, -2500]  # 0.01 % = 0.0001
    assert columns["mark_price"] == [0, 0]
    assert codes(refused) == [(4, "t", "missing_field")]


@pytest.mark.parametrize(
    ("option", "text", "e8"),
    [
        ("", "0.00000001", 1),
        ("", "1e-8", 1),
        ("", "0.000000015", None),
        (", round: true", "0.000000015", 2),
        (", round: true", "0.000000025", 2),
        (", scale: 0.01", "0.0000001", None),
        (", scale: 0.01, round: true", "0.0000015", 2),
        (", scale: 1000", "9999999.99999999999", 9999999_999_999_999_99),
        (", scale: 1000", "99999999.99999999999", None),
        (", scale: 1000", "1e999", None),
        (", round: true", "1e999", None),
        ("", "nan", None),
        ("", "1_000", None),
        ("", "0x10", None),
        ("", "", None),
    ],
)
def test_decimals_are_exact(tmp_path: Path, option: str, text: str, e8: int | None) -> None:
    yaml = TRADES.replace("column: px", f"column: px{option}")
    columns, refused, _ = load(tmp_path, yaml, f"ts,id,px,qty,side\n{T},1,{text},1,b\n")
    if e8 is None:
        assert [(r.line, r.field) for r in refused] == [(2, "px")]
        assert columns == {}
    else:
        assert refused == []
        assert columns["price"] == [e8]


@given(
    st.decimals(min_value=-(10**6), max_value=10**6, places=8),
    st.sampled_from([Decimal("0.01"), Decimal("0.001"), Decimal(100), Decimal("-1")]),
)
def test_scaling_equals_integer_arithmetic(value: Decimal, scale: Decimal) -> None:
    numerator, denominator = scale.as_integer_ratio()
    product, rest = divmod(int(value * 10**8) * numerator, denominator)
    if rest == 0:
        assert scaled_e8(str(value), scale, rounds=False) == product
    else:
        with pytest.raises(ValueError, match="out_of_range"):
            scaled_e8(str(value), scale, rounds=False)
        assert abs(scaled_e8(str(value), scale, rounds=True) - product) <= 1


def test_trades_that_cannot_be(tmp_path: Path) -> None:
    rows = [
        f"{T},1,0,1,b", f"{T},2,-5,1,b", f"{T},3,1,0,b", f"{T},4,1,1,x", f"{T},,1,1,b", ROW,
    ]  # fmt: skip
    columns, refused, _ = load(tmp_path, TRADES, "ts,id,px,qty,side\n" + "\n".join(rows))
    assert columns["line"] == [7]
    assert codes(refused) == [
        (2, "price", "out_of_range"),
        (3, "price", "out_of_range"),
        (4, "quantity", "zero_quantity"),
        (5, "side", "unmapped_value"),
        (6, "id", "missing_field"),
    ]
    assert refused[0].raw == f"{T},1,0,1,b"


def test_instruments_by_column_have_their_own_watermarks(tmp_path: Path) -> None:
    yaml = TRADES.replace(
        "market_type: spot", "market_type: {column: m, values: {S: spot, P: linear, X: swap}}"
    )
    csv = f"ts,id,px,qty,side,m\n{T},1,1,1,b,S\n{T + 5},2,1,1,b,P\n{T + 1},3,1,1,b,S\n{T},4,1,1,b,X\n"
    _, refused, items = load(tmp_path, yaml, csv)
    assert codes(refused) == [(5, "m", "bad_value")]
    assert [item for item in items if isinstance(item, Watermark)] == [
        Watermark("trades", "alpha", "linear", "AAAUSDT", (T + 5) * 1000),
        Watermark("trades", "alpha", "spot", "AAAUSDT", (T + 1) * 1000),
    ]


def test_several_files_one_watermark(tmp_path: Path) -> None:
    first = reader(tmp_path, TRADES, f"ts,id,px,qty,side\n{T + 9},1,1,1,b\n", "b.csv")
    second = reader(tmp_path, TRADES, f"side,ts,id,px,qty\ns,{T},2,1,1\n", "a.csv")
    both = MappedReader([*first.paths, *second.paths], tmp_path / "map.yml")
    columns, _, items = collect(both)
    assert columns["trade_id"] == ["1", "2"]
    assert [item.timestamp for item in items if isinstance(item, Watermark)] == [(T + 9) * 1000]
    assert both.options == first.options
    other = reader(tmp_path, TRADES.replace("qty}", "qty, scale: 2}"), "", "c.csv")
    assert other.options != first.options


# --- the kinds -----------------------------------------------------------------------------------------

BOOK = {"timestamp": "column: t, unit: ms", "last_update_id": "column: u"}
BEST = {
    "best_bid_price": "column: bp", "best_bid_quantity": "column: bq",
    "best_ask_price": "column: ap", "best_ask_quantity": "column: aq",
}  # fmt: skip


def test_top_of_book_becomes_one_level(tmp_path: Path) -> None:
    csv = (
        f"t,u,bp,bq,ap,aq\n{T},1,100.50,2,100.51,0.001\n{T},2,0,0,101,1\n{T},3,101,1,101,1\n"
        f"{T},4,100,0,101,1\n{T},-5,100,1,101,1\n{T},6,-1,1,101,1\n"
    )
    columns, refused, items = load(tmp_path, mapped("orderbooks", **BOOK, **BEST), csv)
    assert columns["bids"] == ['[["100.5","2"]]', "[]"]
    assert columns["asks"] == ['[["100.51","0.001"]]', '[["101","1"]]']
    assert (columns["bids_count"], columns["asks_count"]) == ([1, 0], [1, 1])
    assert columns["best_ask_quantity"] == [100_000, 10**8]
    assert codes(refused) == [
        (4, "best_bid_price", "crossed_book"),
        (5, "best_bid_quantity", "zero_quantity"),
        (6, "u", "bad_number"),
        (7, "best_bid_price", "out_of_range"),
    ]
    assert [type(item) for item in items][-1] is Watermark


def test_levels_from_json(tmp_path: Path) -> None:
    def row(update: int, bids: object, asks: object = ((102, 1),)) -> str:
        texts = [json.dumps(side).replace('"', '""') for side in (bids, asks)]
        return f'{T},{update},"{texts[0]}","{texts[1]}"\n'

    csv = "t,u,b,a\n" + "".join(
        [
            row(1, [["100.50", "2"], ["100", "0.1"]], [[101.25, 3]]),
            row(2, []),
            row(3, [["100", "1"], ["101", "1"]]),
            row(4, [["100", "1"], ["100", "1"]]),
            row(5, [["100", "0"]]),
            row(6, [["100"]]),
            row(7, {"100": 1}),
            row(8, [["abc", "1"]]),
            row(9, [["103", "1"]]),
        ]
    )
    columns, refused, _ = load(
        tmp_path, mapped("orderbooks", **BOOK, bids="column: b", asks="column: a"), csv
    )
    assert columns["bids"] == ['[["100.50","2"],["100","0.1"]]', "[]"]
    assert columns["asks"] == ['[["101.25","3"]]', '[["102","1"]]']
    assert columns["bids_count"] == [2, 0]
    assert columns["best_bid_price"] == [10_050_000_000, 0]
    assert columns["best_bid_quantity"] == [2 * 10**8, 0]
    assert columns["best_ask_price"] == [10_125_000_000, 10_200_000_000]
    assert codes(refused) == [
        (4, "b", "out_of_range"), (5, "b", "out_of_range"), (6, "b", "out_of_range"), (7, "b", "bad_json"),
        (8, "b", "bad_json"), (9, "b", "bad_number"), (10, "best_bid_price", "crossed_book"),
    ]  # fmt: skip


def test_shares(tmp_path: Path) -> None:
    time, period = "column: t, unit: ms", "value: 5m"
    long = mapped(
        "lsr_all_accounts", timestamp=time, period=period, long_account_ratio="column: x, scale: 0.01"
    )
    columns, refused, _ = load(tmp_path, long, f"t,x\n{T},62.5\n{T},101\n{T},-1\n")
    assert columns["long_account_ratio"] == [62_500_000]
    assert columns["short_account_ratio"] == [37_500_000]
    assert columns["period"] == ["5m"]
    assert [r.line for r in refused] == [3, 4]

    ratio = mapped("lsr_top_positions", timestamp=time, period=period, ratio="column: x")
    columns, refused, items = load(tmp_path, ratio, f"t,x\n{T},2.17\n{T},0\n")
    assert columns["long_position_ratio"] == [68454259]
    assert columns["short_position_ratio"] == [31545741]
    assert codes(refused) == [(3, "x", "out_of_range")]
    assert not any(isinstance(item, Watermark) for item in items)


def test_wide_and_dates(tmp_path: Path) -> None:
    yaml = mapped(
        "open_interests", timestamp="column: t, unit: ms", open_interest="column: oi",
        open_interest_value="column: v, scale: 1000000", count="value: 0",
    )  # fmt: skip
    columns, refused, _ = load(
        tmp_path, yaml, f"t,oi,v\n{T},123456789012345678901.5,5929.801270000561\n{T},x,1\n"
    )
    assert columns["open_interest"] == ["123456789012345678901.50000000"]
    assert columns["open_interest_value"] == ["5929801270.00056100"]
    assert columns["count"] == [0]
    assert codes(refused) == [(3, "oi", "bad_number")]

    yaml = mapped(
        "volatility_indices", timestamp="column: t, unit: ms", index_value="column: v",
        underlying_asset="value: BTC", maturity_date="column: d, unit: iso",
    )  # fmt: skip
    columns, refused, _ = load(tmp_path, yaml, f"t,v,d\n{T},55.5,2024-06-28\n{T},55.5,28.6.2024\n")
    assert columns["maturity_date"] == [date(2024, 6, 28)]
    assert [r.line for r in refused] == [3]


# --- Parquet -------------------------------------------------------------------------------------------


def table(**columns: pa.Array) -> pa.Table:
    given: dict[str, pa.Array] = {
        "ts": pa.array([datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)] * 3, pa.timestamp("ns", "UTC")),
        "id": pa.array([7, 8, 9], pa.int64()),
        "px": pa.array([100.1, 0.1 + 0.2, 61737.63]),
        "qty": pa.array([Decimal("0.00000001"), Decimal("1.5"), Decimal("2")], pa.decimal128(18, 8)),
        "side": pa.array(["b", "s", "b"]).dictionary_encode(),
    }
    return pa.table(given | columns)


def test_parquet_types(tmp_path: Path) -> None:
    columns, refused, items = load(tmp_path, TRADES, table(), "data.parquet")
    assert refused == []
    assert columns["timestamp"] == [T * 1000] * 3
    assert columns["trade_id"] == ["7", "8", "9"]
    assert columns["price"] == [10_010_000_000, 30_000_000, 6_173_763_000_000]
    assert columns["quantity"] == [1, 150_000_000, 200_000_000]
    assert columns["side"] == ["buy", "sell", "buy"]
    assert columns["line"] == [1, 2, 3]
    size = (tmp_path / "data.parquet").stat().st_size
    assert [item.done for item in items if isinstance(item, Progress)] == [size]


@pytest.mark.parametrize(
    ("column", "micros"),
    [
        (pa.array([datetime(2023, 11, 14, 22, 13, 20)] * 3, pa.timestamp("ms")), T * 1000),
        (pa.array([T * 1000] * 3).cast(pa.timestamp("us", "America/New_York")), T * 1000),
        (pa.array([T + 1] * 3, pa.uint64()), (T + 1) * 1000),
        (pa.array([T + 0.25] * 3, pa.float64()), T * 1000 + 250),
        (pa.array([str(T)] * 3, pa.large_string()), T * 1000),
        (pa.array([date(2023, 11, 14)] * 3, pa.date32()), 1699920000_000000),
    ],
)
def test_parquet_times(tmp_path: Path, column: pa.Array, micros: int) -> None:
    columns, _, _ = load(tmp_path, TRADES, table(ts=column), "data.parquet")
    assert columns["timestamp"] == [micros] * 3


def test_parquet_values_that_are_none(tmp_path: Path) -> None:
    content = table(
        px=pa.array([float("nan"), None, 1.0]),
        side=pa.array(["b", "b", None]),
    )
    columns, refused, _ = load(tmp_path, TRADES, content, "data.parquet")
    assert columns == {}
    assert codes(refused) == [
        (1, "px", "bad_number"), (2, "px", "missing_field"), (3, "side", "missing_field")
    ]  # fmt: skip


def test_parquet_floats(tmp_path: Path) -> None:
    """A single-precision price is what its shortest text says, not its binary tail; tiny ones round."""
    yaml = TRADES.replace("column: qty", "column: qty, scale: 0.1")
    content = table(px=pa.array([61737.63, 0.1, 1e10], pa.float32()), qty=pa.array([1e-7, 5.0, 0.3]))
    columns, refused, _ = load(tmp_path, yaml, content, "data.parquet")
    assert columns["price"] == [6_173_763_000_000, 10_000_000]
    assert columns["quantity"] == [1, 50_000_000]
    assert codes(refused) == [(3, "px", "out_of_range")]


@pytest.mark.parametrize(
    ("name", "column", "type_"),
    [
        ("id", pa.array([1.0, 2.0, 3.0]), "double"),
        ("px", pa.array([True, False, True]), "bool"),
        ("px", pa.array([[1], [2], [3]]), "list<"),
        ("ts", pa.array([True, False, True]), "bool"),
        ("qty", pa.array([date(2023, 1, 1)] * 3), "date32"),
        ("side", pa.array([1.5, 1.5, 1.5]), "double"),
    ],
)
def test_parquet_wrong_type(tmp_path: Path, name: str, column: pa.Array, type_: str) -> None:
    with pytest.raises(BadFileError, match=rf"data\.parquet \[{name}\]: .* cannot be read from {type_}"):
        load(tmp_path, TRADES, table(**{name: column}), "data.parquet")


def test_parquet_booleans_and_integers(tmp_path: Path) -> None:
    yaml = TRADES.replace("{b: buy, s: sell}", "{true: sell, false: buy}") + "  is_maker: {column: side}\n"
    columns, _, _ = load(tmp_path, yaml, table(side=pa.array([True, False, True])), "data.parquet")
    assert columns["side"] == ["sell", "buy", "sell"]
    assert columns["is_maker"] == [1, 0, 1]


def test_parquet_in_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping_module, "PARQUET_ROWS", 2)
    columns, _, items = load(tmp_path, TRADES, table(), "data.parquet")
    assert columns["line"] == [1, 2, 3]
    assert [len(item) for item in items if isinstance(item, Batch)] == [2, 1]


def test_damaged_parquet(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    with pytest.raises(BadFileError, match="truncated or damaged Parquet"):
        load(tmp_path, TRADES, content[:-20], "data.parquet")
    start = 4
    broken = content[:start] + b"\xff" * 200 + content[start + 200 :]
    with pytest.raises(BadFileError, match="damaged Parquet after row 0"):
        load(tmp_path, TRADES, broken, "data.parquet")


def test_parquet_without_rows(tmp_path: Path) -> None:
    columns, refused, items = load(tmp_path, TRADES, table().slice(0, 0), "data.parquet")
    assert (columns, refused) == ({}, [])
    assert not any(isinstance(item, Batch | Watermark) for item in items)


def test_parquet_with_a_name_twice(tmp_path: Path) -> None:
    content = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["ts", "ts"])
    with pytest.raises(BadFileError, match="same name: ts, ts"):
        load(tmp_path, TRADES, content, "data.parquet")


# --- files that cannot be loaded -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (
            "ts,id,price,qty,side\n",
            r"\[px\]: no such column, for price; the file has ts, id, price, qty, side",
        ),
        (f"{ROW}\n", r"\[ts\]: no such column, for timestamp; the file has 1700000000000, 1, 100.5, 0.25, b"),
        (f"ts,id,px,qty,side\n{ROW},9\n", r"data\.csv:2: 6 columns where 5 are expected"),
        (gzip.compress(f"ts,id,px,qty,side\n{ROW}\n".encode() * 99, mtime=0)[:-12], "truncated or damaged"),
        (b"ts,id,px,qty,side\n\xff,1,1,1,b\n", "not UTF-8"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        load(tmp_path, TRADES, content)


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "map.yml").write_text(TRADES)
    with pytest.raises(BadFileError, match=r"nowhere\.csv: No such file"):
        list(MappedReader([tmp_path / "nowhere.csv"], tmp_path / "map.yml").read())


def test_header_and_no_rows(tmp_path: Path) -> None:
    assert load(tmp_path, TRADES, "ts,id,px,qty,side\n")[0] == {}


# --- mapping files that are wrong ----------------------------------------------------------------------


LSR = {"timestamp": "column: t", "period": "value: 1h"}


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("", r"map\.yml: a mapping file is"),
        ("- kind", "a mapping file is"),
        ("kind: [trades", r"map\.yml:1: not YAML"),
        ("kind: trades\n\tx: 1", r"map\.yml:2: not YAML"),
        (TRADES + "delimiter: ;\n", r"\[delimiter\]: Extra inputs are not permitted"),
        (
            TRADES + "  funding_rate: {column: f}\n",
            r"\[columns\.funding_rate\]: trades has no such column; it",
        ),
        (TRADES + "  symbol: {column: f}\n", r"\[columns\.symbol\]: trades has no such column"),
        (mapped("orderbooks", **BOOK, bids="column: b"), r"\[columns\.best_ask_price\]: orderbooks needs"),
        (mapped("lsr_all_accounts", **LSR), r"\[columns\.long_account_ratio\]"),
        (
            mapped("lsr_all_accounts", **LSR, ratio="column: r", long_account_ratio="column: l"),
            r"\[columns\.ratio\]: give either",
        ),
    ],
)
def test_bad_mapping(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        reader(tmp_path, yaml, "")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("kind: trades", "kind: candles", r"map\.yml \[kind\]: Input should be 'trades', 'orderbooks'"),
        ("symbol: AAAUSDT\n", "", r"\[symbol\]: Field required"),
        ("exchange: alpha", "exchange: {values: {a: b}}", r"\[exchange\]: give either"),
        ("market_type: spot", "market_type: swap", r"\[market_type\]: bad_value: 'swap' is none of spot"),
        ("  price: {column: px}\n", "", r"\[columns\.price\]: trades needs this column"),
        ("  timestamp: {column: ts, unit: ms}\n", "", r"\[columns\.timestamp\]: trades needs"),
        ("unit: ms", "unit: minutes", r"\[columns\.timestamp\.unit\]: Input should be 's', 'ms'"),
        ("column: px", "column: px, value: 1", r"\[columns\.price\]: give either `column` or `value`"),
        ("column: px", "column: px, scale: many", r"\[columns\.price\.scale\]: Input should be a valid dec"),
        ("column: px", "column: px, unit: ms", r"\[columns\.price\.unit\]: only times"),
        ("column: px", "column: px, values: {a: b}", r"\[columns\.price\.values\]: only strings"),
        ("column: px", "column: [px]", r"\[columns\.price\.column\]: Input should be a valid string"),
        ("column: px", "value: abc", r"\[columns\.price\.value\]: bad_number: 'abc'"),
        ("column: id", "column: id, scale: 2", r"\[columns\.trade_id\.scale\]: only decimals"),
        ("column: id", "column: id, round: true", r"\[columns\.trade_id\.round\]: only decimals"),
        ("{column: id}", "id", r"\[columns\.trade_id\]: Input should be"),
    ],
)
def test_bad_key(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    assert right in TRADES
    with pytest.raises(BadFileError, match=message):
        reader(tmp_path, TRADES.replace(right, wrong), "")


def test_missing_mapping(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"nowhere\.yml: No such file"):
        MappedReader([], tmp_path / "nowhere.yml")


# --- recorded ------------------------------------------------------------------------------------------


def test_recorded_ratio_as_the_series_reader_has_it(recorded: Path, tmp_path: Path) -> None:
    """The same CSV through a mapping and through its own reader: the same rows."""
    from python_udfs.ingest.series import SeriesReader

    path = recorded / "okx-sol-swap-derivatives-202606" / "long_short_ratio.csv"
    yaml = mapped(
        "lsr_all_accounts", timestamp="column: ts, unit: ms", period="value: 1h", ratio="column: ratio"
    )
    (tmp_path / "map.yml").write_text(yaml)
    columns, refused, _ = collect(MappedReader([path], tmp_path / "map.yml"))
    (batch,) = [item for item in SeriesReader(path).read() if isinstance(item, Batch)]
    assert (len(batch), refused) == (360, [])
    for name in ("timestamp", "long_account_ratio", "short_account_ratio", "period"):
        assert columns[name] == batch.columns[name].tolist()
