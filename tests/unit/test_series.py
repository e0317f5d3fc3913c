"""SeriesReader: every series of the recorded data, its traps, and files that are not what they seem."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_udfs.errors import BadFileError
from python_udfs.ingest.records import COLUMNS, INSTRUMENT, Batch, Item, Kind, Note, Progress, Reject
from python_udfs.ingest.series import SeriesReader

OKX = "okx-sol-swap-derivatives-202606"
BINANCE = "binance-btcusdt-oi-lsr-202603"
DERIBIT = "deribit-dvol-binance-funding-2022-2025"
POLLS = "okx-multi-lsr-funding-202604"
BYBIT = "bybit-liquidations-20240212-excerpt"
POLL = {"timestamp": "2026-04-13T06:09:54Z", "unix": 1776060594}


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000) * 1000


def write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(path: Path) -> tuple[dict[str, list[Any]], list[Reject], list[Item]]:
    """(all rows by column, the rejects, all items)."""
    items = list(SeriesReader(path).read())
    columns: dict[str, list[Any]] = {}
    for batch in (item for item in items if isinstance(item, Batch)):
        assert set(batch.columns) == {
            *INSTRUMENT, "timestamp", "received_at", "data_source", *COLUMNS[batch.kind]
        }  # fmt: skip
        assert {len(values) for values in batch.columns.values()} == {len(batch)}
        for name, values in batch.columns.items():
            columns.setdefault(name, []).extend(values.tolist())
    return columns, [item for item in items if isinstance(item, Reject)], items


# --- recorded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "kind", "source", "counts", "span"),
    [
        (f"{OKX}/funding_rate.csv", "funding_rates", "okx_rest", (45, 0),
         ("2026-06-11T16:00:00", "2026-06-26T08:00:00")),
        (f"{OKX}/long_short_ratio.csv", "lsr_all_accounts", "okx_rest", (360, 0),
         ("2026-06-11T16:00:00", "2026-06-26T15:00:00")),
        (f"{OKX}/open_interest.csv", "open_interests", "okx_rest", (360, 0),
         ("2026-06-11T16:00:00", "2026-06-26T15:00:00")),
        (f"{BINANCE}/long_short_ratio.json", "lsr_all_accounts", "binance_rest", (500, 0),
         ("2026-03-05T22:00:00", "2026-03-26T17:00:00")),
        (f"{BINANCE}/open_interest.json", "open_interests", "binance_rest", (500, 0),
         ("2026-03-05T22:00:00", "2026-03-26T17:00:00")),
        (f"{DERIBIT}/dvol_btc.json", "volatility_indices", "deribit_rest", (1102, 0),
         ("2022-11-06T00:00:00", "2025-11-12T00:00:00")),
        (f"{DERIBIT}/funding_rate_btc.json", "funding_rates", "binance_rest", (3316, 0),
         ("2022-11-03T08:00:00.016", "2025-11-12T08:00:00.002")),
        # 434 polls, the first 4 without values; 5 symbols a poll.
        (f"{POLLS}/long_short_ratio.json", "lsr_all_accounts", "okx_poll", (2150, 4),
         ("2026-04-13T06:09:54", "2026-05-07T09:15:09")),
        (f"{POLLS}/funding_rates.json", "funding_rates", "okx_poll", (2150, 4),
         ("2026-04-13T06:09:54", "2026-05-07T09:15:09")),
        (f"{BYBIT}/liquidations_BTC_2024-02-12.excerpt.jsonl", "liquidations", "bybit_ws", (4, 0),
         ("2024-02-12T16:45:31.467", "2024-02-12T16:46:22.467")),
    ],
)  # fmt: skip
def test_recorded_rows_and_span(
    recorded: Path, *, file: str, kind: Kind, source: str, counts: tuple[int, int], span: tuple[str, str]
) -> None:
    path = recorded / file
    assert SeriesReader.accepts(path)
    columns, refused, items = read(path)
    assert {item.kind for item in items if isinstance(item, Batch)} == {kind}
    assert set(columns["data_source"]) == {SeriesReader(path).data_source} == {source}
    assert (len(columns["timestamp"]), len(refused)) == counts
    assert (min(columns["timestamp"]), max(columns["timestamp"])) == (micros(span[0]), micros(span[1]))
    assert Progress(path.stat().st_size) in items


def test_recorded_polls_of_open_interest_load_nothing(recorded: Path) -> None:
    columns, refused, _ = read(recorded / POLLS / "open_interest.json")
    assert columns == {}
    codes = [reject.reason.split(":")[0] for reject in refused]
    assert codes.count("stuck_zero") == 430 * 5
    assert codes.count("missing_field") == 4
    # The quarantine table tells rows apart by line, field and reason.
    assert len({(r.line, r.field, r.reason) for r in refused}) == len(refused)


def test_recorded_percent_equals_the_rate_of_the_websocket_capture(recorded: Path) -> None:
    """2023-04-05 00:00: the capture of 2023 says r = 0.00002760 for this settlement."""
    columns, _, items = read(recorded / DERIBIT / "funding_rate_btc.json")
    row = columns["funding_time"].index(micros("2023-04-05T00:00:00"))
    assert columns["funding_rate"][row] == 2760
    jitter = np.array(columns["timestamp"]) - np.array(columns["funding_time"])
    assert jitter.min() >= 0 and jitter.max() <= 30_000
    assert all(time % (8 * 3600 * 10**6) == 0 for time in columns["funding_time"])
    assert [item.name for item in items if isinstance(item, Note)] == ["binance_rest funding_rates"]


def test_recorded_dvol_keeps_the_stamp_of_the_day_start(recorded: Path) -> None:
    columns, _, _ = read(recorded / DERIBIT / "dvol_btc.json")
    at = dict(zip(columns["timestamp"], columns["index_value"], strict=True))
    assert at[micros("2023-04-05T00:00:00")] == 5802 * 10**6
    assert at[micros("2024-08-08T00:00:00")] == 5681 * 10**6
    assert at[micros("2024-08-09T00:00:00")] == 5502 * 10**6
    assert micros("2025-11-11T00:00:00") not in at
    assert set(columns["symbol"]) == {"BTC-DVOL"}
    assert set(columns["underlying_asset"]) == {"BTC"}
    assert str(columns["maturity_date"][0]) == "2022-12-06"


def test_recorded_instruments_are_in_the_seed(recorded: Path) -> None:
    seed = (Path(__file__).parents[2] / "seeds" / "instruments.csv").read_text().splitlines()[1:]
    known = {tuple(line.split(",")[:3]) for line in seed}
    for path in recorded.glob("*/*"):
        if SeriesReader.accepts(path):
            columns, _, _ = read(path)
            names = (columns.get(name, []) for name in INSTRUMENT)
            assert set(zip(*names, strict=True)) <= known


def test_recorded_files_with_something_else_are_left_alone(recorded: Path) -> None:
    accepted = {f"{p.parent.name}/{p.name}" for p in recorded.glob("*/*") if SeriesReader.accepts(p)}
    assert len(accepted) == 11
    assert not accepted & {f"{OKX}/taker_volume.csv", f"{OKX}/ohlcv_1h.csv"}
    assert {name.split("/")[0] for name in accepted} == {OKX, BINANCE, DERIBIT, POLLS, BYBIT}


# --- values --------------------------------------------------------------------------------------------


def test_okx_open_interest_is_usd_and_time_is_ts(tmp_path: Path) -> None:
    path = write(
        tmp_path / OKX,
        "open_interest.csv",
        "ts,oi,oi_value,dt\n"
        "1781193600000,202525932.2233,202525932.2233,2026-06-12 00:00:00+08:00\n"
        "1781197200000,0,0,2026-06-12 01:00:00+08:00\n"
        "1781200800000,3040000,204551299.1591,2026-06-12 02:00:00+08:00\n"
        "1781204400000,,,2026-06-12 03:00:00+08:00\n",
    )
    columns, refused, items = read(path)
    assert columns["timestamp"] == [micros("2026-06-11T16:00:00")]
    assert columns["symbol"] == ["SOL-USDT-SWAP"]
    assert (columns["open_interest"], columns["open_interest_value"]) == (["0"], ["202525932.22330000"])
    assert [(r.line, r.reason.split(":")[0]) for r in refused] == [
        (3, "stuck_zero"),
        (4, "unit_unknown"),
        (5, "missing_field"),
    ]
    assert any(isinstance(item, Note) and "USD value only" in item.value for item in items)


def test_okx_ratio_and_funding(tmp_path: Path) -> None:
    path = write(
        tmp_path / "okx-eth-swap",
        "long_short_ratio.csv",
        "ts,ratio,dt\n1781193600000,2.17,x\n1781197200000,0,x\n1781200800000,abc,x\n",
    )
    columns, refused, _ = read(path)
    assert columns["symbol"] == ["ETH-USDT-SWAP"]
    assert columns["long_account_ratio"] == [68454259]  # 2.17 / 3.17 = 0.684542586…
    assert columns["short_account_ratio"] == [31545741]
    assert columns["period"] == ["1h"]
    assert [r.reason.split(":")[0] for r in refused] == ["out_of_range", "bad_number"]

    path = write(
        tmp_path / "okx-eth-swap",
        "funding_rate.csv",
        "ts,fundingRate,dt\n1781193600000,-3.3124734566e-06,x\n1781222400029,0.000000005,x\n"
        "1781251200000,0.000000015,x\n1781280000000,1e400,x\n",
    )
    columns, refused, _ = read(path)
    assert columns["funding_rate"] == [-331, 0, 2]  # half to even
    assert columns["timestamp"][1] - columns["funding_time"][1] == 29_000
    assert columns["next_funding_time"] == [0, 0, 0]
    assert [r.line for r in refused] == [5]


def test_binance_shares_are_taken_as_published(tmp_path: Path) -> None:
    records = [
        {"time": 1772748000000, "ratio": 1.1645, "longAccount": 0.538, "shortAccount": 0.462},
        {"time": 1772751600000, "ratio": 1.1645, "longAccount": 53.8, "shortAccount": 46.2},
        {"time": 1772755200000, "ratio": 1.1645, "shortAccount": 0.462},
        {"time": 1772758800, "ratio": 1.1645, "longAccount": 0.538, "shortAccount": 0.462},
        "not a record",
    ]
    columns, refused, _ = read(write(tmp_path / BINANCE, "long_short_ratio.json", records))
    assert columns["long_account_ratio"] == [53_800_000]
    assert columns["short_account_ratio"] == [46_200_000]
    assert [(r.line, r.field, r.reason.split(":")[0]) for r in sorted(refused, key=lambda r: r.line)] == [
        (2, "longAccount", "out_of_range"),
        (3, "longAccount", "missing_field"),
        (4, "time", "out_of_range"),
        (5, "", "bad_json"),
    ]


def test_binance_open_interest_keeps_every_digit(tmp_path: Path) -> None:
    records = '[{"time":1772748000000,"openInterest":83397.687,"openInterestValue":5929801270.000561},\n'
    records += '{"time":1772751600000,"openInterest":0,"openInterestValue":5929801270.000561}]'
    columns, refused, _ = read(write(tmp_path / BINANCE, "open_interest.json", records))
    assert columns["open_interest"] == ["83397.68700000"]
    assert columns["open_interest_value"] == ["5929801270.00056100"]
    assert [(r.line, r.field, r.reason.split(":")[0]) for r in refused] == [(2, "openInterest", "stuck_zero")]


def test_percent_with_float_noise(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "funding_rate_eth.json",
        "[[1667491200005, 0.006940000000000001], [1667520000000, -0.002775], [1667548800004, NaN], [1]]",
    )
    columns, refused, _ = read(path)
    assert columns["symbol"] == ["ETHUSDT", "ETHUSDT"]
    assert columns["funding_rate"] == [6940, -2775]
    assert columns["funding_time"] == [micros("2022-11-03T16:00:00"), micros("2022-11-04T00:00:00")]
    assert sorted((r.line, r.reason.split(":")[0]) for r in refused) == [(3, "bad_number"), (4, "bad_json")]


def test_dvol_of_another_coin(tmp_path: Path) -> None:
    columns, refused, _ = read(write(tmp_path, "dvol_eth.json", [[1667692800000, 56.76], [1667779200000, 0]]))
    assert (columns["symbol"], columns["underlying_asset"]) == (["ETH-DVOL"], ["ETH"])
    assert columns["index_value"] == [5676 * 10**6]
    assert [r.line for r in refused] == [2]


def test_polls(tmp_path: Path) -> None:
    polls = [
        {**POLL, "rates": {}},
        {
            **POLL,
            "rates": {"BTCUSDT": "0.0000818819277996", "ETHUSDT": "-0.00001", "BTC-USD": "0.1"},
            "next_funding": {"BTCUSDT": 1776067200000},
        },
        {**POLL, "rates": None, "next_funding": {}},
    ]
    columns, refused, _ = read(write(tmp_path, "funding_rates.json", polls))
    assert columns["symbol"] == ["BTC-USDT-SWAP"]
    assert columns["funding_rate"] == [8188]
    assert columns["timestamp"] == columns["received_at"] == [micros("2026-04-13T06:09:54")]
    assert columns["funding_time"] == [micros("2026-04-13T08:00:00")]
    found = sorted((r.line, r.field, r.reason.split(":")[0]) for r in refused)
    assert found == [
        (1, "rates", "missing_field"),
        (2, "next_funding", "missing_field"),
        (2, "symbol", "unknown_symbol"),
        (3, "rates", "missing_field"),
    ]


def test_polls_of_ratios_and_open_interest(tmp_path: Path) -> None:
    polls: list[dict[str, Any]] = [
        {**POLL, "ratios": {}},
        {**POLL, "global": {"BTCUSDT": "1.21", "XRPUSDT": "-1"}},
    ]
    columns, refused, _ = read(write(tmp_path, "long_short_ratio.json", polls))
    assert columns["long_account_ratio"] == [54751131]
    assert columns["period"] == ["poll"]
    assert sorted(r.reason.split(":")[0] for r in refused) == ["missing_field", "out_of_range"]

    polls = [{**POLL, "oi": {"BTCUSDT": "5", "ETHUSDT": "0"}, "oi_value": {"BTCUSDT": "7.5", "ETHUSDT": "0"}}]
    columns, refused, _ = read(write(tmp_path, "open_interest.json", polls))
    assert (columns["open_interest"], columns["open_interest_value"]) == (["0"], ["7.50000000"])
    assert [r.reason for r in refused] == ["stuck_zero: the open interest of ETHUSDT is 0, which is no value"]


def test_liquidations(tmp_path: Path) -> None:
    event = {
        "updatedTime": 1707756331467,
        "symbol": "BTCUSDT",
        "side": "Buy",
        "size": "1.496",
        "price": "49306.30",
    }
    lines = [
        json.dumps({"t": 1707756333999, "d": [event, {**event, "side": "Sell", "size": "2"}]}),
        json.dumps({"t": 1707756334999, "d": []}),
        "",
        json.dumps({"t": 1707756335999, "d": None}),
        json.dumps({"t": 1707756336999, "d": [{**event, "side": "Long"}, {**event, "size": "0"}]}),
        json.dumps({"t": 1707756337999}),
        '{"t": 1707756338999, "d": [{"updatedTime": 17077',
    ]
    columns, refused, _ = read(write(tmp_path, "liquidations_BTC.jsonl", "\n".join(lines)))
    assert columns["side"] == ["sell", "buy"]  # a long is closed by selling
    assert columns["price"] == [4930630000000] * 2
    assert columns["quantity"] == [149600000, 200000000]
    assert columns["timestamp"] == columns["liquidation_time"] == [micros("2024-02-12T16:45:31.467")] * 2
    assert columns["received_at"] == [micros("2024-02-12T16:45:33.999")] * 2
    assert sorted((r.line, r.field, r.reason.split(":")[0]) for r in refused) == [
        (5, "side", "bad_value"),
        (5, "size", "zero_quantity"),
        (6, "d", "missing_field"),
        (7, "", "bad_json"),
    ]


# --- files that cannot be loaded -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dvol_btc.json", "liquidations.jsonl", "funding_rate.csv"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, "")
    assert not SeriesReader.accepts(path)
    with pytest.raises(BadFileError, match="the file is empty"):
        SeriesReader(path)


def test_missing_file(tmp_path: Path) -> None:
    assert not SeriesReader.accepts(tmp_path / "dvol_btc.json")
    with pytest.raises(BadFileError, match="No such file"):
        SeriesReader(tmp_path / "dvol_btc.json")


def test_truncated_json_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "dvol_btc.json", "[\n [1667692800000, 56.76],\n [1667779200000, 59")
    assert SeriesReader.accepts(path)
    with pytest.raises(BadFileError, match=r"dvol_btc\.json:3: truncated or no JSON"):
        list(SeriesReader(path).read())


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "dvol_btc.json"
    path.write_bytes(b"[[1667692800000, 56.76], \xff]")
    with pytest.raises(BadFileError, match="not UTF-8"):
        list(SeriesReader(path).read())


def test_not_an_array(tmp_path: Path) -> None:
    path = write(
        tmp_path / BINANCE, "open_interest.json", {"time": 1, "openInterest": 1, "openInterestValue": 1}
    )
    with pytest.raises(BadFileError, match="a JSON array of records is expected"):
        list(SeriesReader(path).read())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open_interest.csv", "ts,sellVol,buyVol,dt\n", "has ts,sellVol,buyVol,dt; .* has ts,oi,oi_value,dt"),
        ("taker_volume.csv", "ts,oi,oi_value,dt\n", "load it through a mapping file"),
        ("open_interest.json", [{"time": 1, "oi": 2}], "has time,oi; .* or timestamp,unix,oi,oi_value"),
        ("dvol_btc.json", [], "has no fields"),
        ("dvol_btc.json", "[" * 50_000, "has no fields"),
        ("dvol_btc.json", "<html>", "has no fields"),
    ],
)
def test_other_content(tmp_path: Path, name: str, content: object, message: str) -> None:
    path = write(tmp_path / OKX, name, content)
    assert not SeriesReader.accepts(path)
    with pytest.raises(BadFileError, match=message):
        SeriesReader(path)


def test_an_instrument_is_never_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "elsewhere", "funding_rate.csv", "ts,fundingRate,dt\n1781193600000,0.0001,x\n")
    assert SeriesReader.accepts(path)
    with pytest.raises(BadFileError, match="starts like okx-<name>-swap"):
        SeriesReader(path)


def test_line_of_another_width(tmp_path: Path) -> None:
    path = write(tmp_path / OKX, "funding_rate.csv", "ts,fundingRate,dt\n1781193600000,0.0001\n")
    with pytest.raises(BadFileError, match=r"funding_rate\.csv:2: 2 columns where 3 are expected"):
        list(SeriesReader(path).read())
