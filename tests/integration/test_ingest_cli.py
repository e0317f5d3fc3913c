"""`marketprism ingest` as a user meets it, and how files are grouped into loads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.ingest.cli import app
from python_udfs.ingest.detect import detect, readers_for
from python_udfs.ingest.records import Reader
from python_udfs.settings import Settings, settings

RECEIVED = 1_723_161_255_088  # ms
TRADE = (
    '{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"T":%d,"s":"BTCUSDT","t":%d,"p":"61737.63000000",'
    '"q":"0.00100000","m":true,"M":true}}'
)


def capture(path: Path, trades: int, *, first_id: int = 1, symbol: str = "BTCUSDT") -> Path:
    lines = [
        f"{RECEIVED + i} {TRADE % (RECEIVED + i, RECEIVED + i, first_id + i)}".replace("BTCUSDT", symbol)
        for i in range(trades)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as f:
        f.write("\n".join(lines) + "\n")
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def count(table: str) -> int:
    with db.connect(settings().database("hot")) as c:
        return int(c.execute(f"select count() from {table}")[0][0])


def describe(readers: list[Reader]) -> list[tuple[str, dict[str, str], list[str]]]:
    return [(type(r).__name__, r.options, [p.name for p in r.paths]) for r in readers]


# --- which reader takes what ---------------------------------------------------------------------------


def test_captures_are_grouped_by_market_symbol_and_consecutive_days(tmp_path: Path) -> None:
    names = [
        "cm_btcusd_perp_20240808.gz",
        "spot_btcusdt_20240809.gz",
        "spot_btcusdt_20240808.dat.gz",
        "spot_btcusdt_20240811.gz",  # a day is missing before it
        "spot_ethusdt_20240809.gz",
        "usdm_btcusdt_20240831.gz",
        "usdm_btcusdt_20240901.gz",
    ]
    touch(*(tmp_path / name for name in names))
    spot, linear, inverse = ({"market_type": m} for m in ("spot", "linear", "inverse"))
    name = "BinanceWebsocketReader"
    assert describe(readers_for([tmp_path])) == [
        (name, inverse, ["cm_btcusd_perp_20240808.gz"]),
        (name, spot, ["spot_btcusdt_20240808.dat.gz", "spot_btcusdt_20240809.gz"]),
        (name, spot, ["spot_btcusdt_20240811.gz"]),
        (name, spot, ["spot_ethusdt_20240809.gz"]),
        (name, linear, ["usdm_btcusdt_20240831.gz", "usdm_btcusdt_20240901.gz"]),
    ]


def test_a_capture_by_its_lines(tmp_path: Path) -> None:
    path = capture(tmp_path / "whatever.gz", 1)
    assert describe(readers_for([path])) == [
        ("BinanceWebsocketReader", {"market_type": "auto"}, ["whatever.gz"])
    ]
    assert readers_for([tmp_path], market_type="linear")[0].options == {"market_type": "linear"}


@pytest.mark.parametrize(
    ("path", "market"),
    [
        ("data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-08-08.zip", "spot"),
        ("data/futures/um/daily/metrics/BTCUSDT/BTCUSDT-metrics-2024-08-08.zip", "linear"),
        ("data/futures/um/monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2024-08.zip", "linear"),
        ("data/futures/cm/daily/bookTicker/X/BTCUSD_PERP-bookTicker-2024-08-08.zip", "inverse"),
        ("data/option/daily/BVOLIndex/BTCBVOLUSDT/BTCBVOLUSDT-BVOLIndex-2024-08-08.zip", "option"),
        ("elsewhere/BTCBVOLUSDT-BVOLIndex-2024-08-08.zip", "option"),
    ],
)
def test_archive_files_by_their_place(tmp_path: Path, path: str, market: str) -> None:
    touch(tmp_path / path, tmp_path / (path + ".CHECKSUM"))
    found = detect([tmp_path])
    assert [(type(r).__name__, r.options) for r in found.readers] == [
        ("BinanceArchiveReader", {"market_type": market})
    ]
    assert found.unknown == []


def test_an_archive_file_out_of_place_needs_its_market(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-aggTrades-2024-08-08.zip"
    touch(path)
    with pytest.raises(UserError, match=r"aggTrades-2024-08-08.zip: .*give --market"):
        readers_for([path])
    assert readers_for([path], market_type="spot")[0].options == {"market_type": "spot"}


def test_each_archive_and_tardis_file_is_a_load(tmp_path: Path) -> None:
    names = [
        "binance-futures_trades_2024-08-08_BTCUSDT.csv.gz",
        "deribit_book_snapshot_25_2024-08-08_BTC-PERPETUAL.csv.gz",
        "deribit_incremental_book_L2_2024-08-08_BTC-PERPETUAL.csv.gz",
        "deribit_liquidations_2024-08-08_BTC-PERPETUAL.csv",
    ]
    touch(*(tmp_path / name for name in names))
    found = detect([tmp_path])
    assert [p.name for r in found.readers for p in r.paths] == [names[0], names[1], names[3]]
    assert {type(r).__name__ for r in found.readers} == {"TardisReader"}
    assert [p.name for p in found.unknown] == [names[2]]


def test_a_file_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "binance-futures_trades_2024-08-08_BTCUSDT.csv.gz"
    touch(path)
    assert len(readers_for([path, tmp_path, tmp_path / "." / path.name])) == 1


def test_hidden_files_are_not_walked(tmp_path: Path) -> None:
    touch(tmp_path / ".x" / "a", tmp_path / ".b", tmp_path / "sub" / "c.part", tmp_path / "sub" / "d")
    assert [p.name for p in detect([tmp_path]).unknown] == ["d"]


def test_unknown_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("# notes")
    found = detect([tmp_path])
    assert (found.readers, found.unknown, found.errors) == ([], [path], [])
    with pytest.raises(UserError, match=r"notes.md: nobody recognises it; what can be read:"):
        readers_for([path])


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8b\x08\0garbage", b"\xff" * 5000])
def test_sniffing_survives_anything(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.gz"
    path.write_bytes(content)
    assert detect([tmp_path]).unknown == [path]


def test_recorded_data(recorded: Path) -> None:
    found = detect([recorded])
    assert found.errors == []
    kinds = [type(r).__name__ for r in found.readers]
    assert kinds.count("BinanceWebsocketReader") == 5
    assert kinds.count("SeriesReader") == 11
    assert {"ohlcv_1h.csv", "btcusd_20250126.gz", "DERIBIT.ws.1.0"} <= {p.name for p in found.unknown}


def test_a_generated_market_is_one_load(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "market"
    touch(folder / "trades.parquet")
    (folder / "manifest.json").write_text(json.dumps({"format": "marketprism-generated", "version": 0}))
    for given in (tmp_path, folder, folder / "trades.parquet"):
        found = detect([given])
        assert (found.readers, found.unknown) == ([], [])
        assert "manifest.json" in str(found.errors[0])


# --- the commands --------------------------------------------------------------------------------------


def test_files_are_loaded_and_summed_up(store: Settings, tmp_path: Path) -> None:
    capture(tmp_path / "in" / "spot_btcusdt_20240808.gz", 30)
    capture(tmp_path / "in" / "usdm_btcusdt_20240808.gz", 20)
    touch(tmp_path / "in" / "notes.md")
    result = run("files", tmp_path / "in")
    assert result.exit_code == 0, result.output
    assert count("trades") == 50
    assert "not recognised: " in result.stderr
    assert "spot_btcusdt_20240808.gz: 30 rows, 0 duplicates, 0 quarantined" in result.stderr
    cells = [[c.strip() for c in line.split("│")] for line in result.stdout.splitlines()]
    assert ["", "trades", "50", "0", "0", "", "", ""] in cells
    again = run("files", tmp_path / "in")
    assert again.exit_code == 0
    assert "2 of 2 loads skipped" in again.stdout
    once_more = run("files", "--again", tmp_path / "in")
    assert "0 rows, 30 duplicates" in once_more.stderr
    assert count("trades") == 50


def test_a_bad_file_does_not_stop_the_others(store: Settings, tmp_path: Path) -> None:
    good = capture(tmp_path / "spot_btcusdt_20240808.gz", 10)
    bad = capture(tmp_path / "usdm_btcusdt_20240808.gz", 500)
    bad.write_bytes(bad.read_bytes()[:-100])  # truncated
    empty = tmp_path / "cm_btcusd_perp_20240808.gz"
    touch(empty)
    nobody = tmp_path / "notes.md"
    touch(nobody)
    result = run("files", bad, empty, nobody, good)
    assert result.exit_code == 1
    assert count("trades") == 10
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [any(str(p) in e for e in errors) for p in (bad, empty, nobody, good)] == [True, True, True, False]
    assert "Traceback" not in result.output


def test_nothing_in_a_folder(store: Settings, tmp_path: Path) -> None:
    result = run("files", tmp_path)
    assert (result.exit_code, "nothing to load" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["files"],
        ["files", "/no/such/file"],
        ["files", ".", "--market", "perp"],
        ["files", ".", "--mapping", "x"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_no_server(environment: Any, free_ports: Any, tmp_path: Path) -> None:
    capture(tmp_path / "spot_btcusdt_20240808.gz", 1)
    with environment(port=str(free_ports(1)[0]), host="127.0.0.1", target="local"):
        result = run("files", tmp_path)
    assert isinstance(result.exception, UserError)
    assert "make up" in str(result.exception)


def test_status_and_quarantine(store: Settings, tmp_path: Path) -> None:
    assert "nothing was loaded yet" in run("status").stdout
    assert "no line was refused" in run("quarantine").stdout
    capture(tmp_path / "spot_btcusdt_20240808.gz", 10)
    capture(tmp_path / "spot_nosuch_20240808.gz", 7, symbol="NOSUCH")
    loaded = run("files", tmp_path)
    assert loaded.exit_code == 0
    assert "why lines were refused" in loaded.stdout
    shown = run("status").stdout
    assert "spot_btcusdt_20240808.gz" in shown
    assert "trades 10" in shown
    assert "trades 7" in shown
    assert "spot_btcusdt" not in run("status", "--limit", "1").stdout
    refused = run("quarantine").stdout
    assert "unknown_symbol" in refused
    assert "spot_nosuch_20240808.gz:1 [symbol]" in refused
    assert "add it to seeds/instruments.csv" in " ".join(refused.split())


def test_a_mapped_file(store: Settings, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.yml"
    mapping.write_text("kind: nonsense\n")
    table = tmp_path / "in" / "trades.csv"
    table.parent.mkdir()
    table.write_text("a,b\n1,2\n")
    result = run("files", tmp_path / "in", "--mapping", mapping)
    assert result.exit_code == 1
    assert "mapping.yml" in result.stderr
