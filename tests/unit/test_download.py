"""The archive download against a local HTTP server with the archive's layout."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from python_udfs.errors import UserError
from python_udfs.ingest.binance_archive import BinanceArchiveReader
from python_udfs.ingest.download import (
    USER_AGENT,
    Downloader,
    Market,
    archive_paths,
    download_command,
    parse_checksum,
    retry_after,
)
from python_udfs.ingest.records import Batch

DAY = "data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2025-01-01.zip"
NEXT = DAY.replace("01-01", "01-02")


class Archive:
    """What the server has, how it misbehaves, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        # Answers given before the real one: path -> (status, headers).
        self.first: dict[str, list[tuple[int, dict[str, str]]]] = {}
        # Bytes after which the connection is cut, once per entry.
        self.cut: dict[str, list[int]] = {}
        self.etags = True
        self.ranges = True
        self.log: list[tuple[str, str | None, int]] = []
        self.agents: set[str] = set()
        self.url = ""

    def put(self, path: str, content: bytes, checksum: str | None = None) -> None:
        self.files[path] = content
        sha = checksum or hashlib.sha256(content).hexdigest()
        self.files[path + ".CHECKSUM"] = f"{sha}  {path.rsplit('/', 1)[-1]}\n".encode()

    def asked(self, path: str) -> list[tuple[str | None, int]]:
        return [(wanted, status) for p, wanted, status in self.log if p == path]


@pytest.fixture
def archive() -> Iterator[Archive]:
    state = Archive()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            wanted = self.headers["Range"]
            state.agents.add(self.headers["User-Agent"])
            if state.first.get(path):
                status, headers = state.first[path].pop(0)
                return self.answer(path, wanted, status, headers, b"")
            content = state.files.get(path)
            if content is None:
                return self.answer(path, wanted, 404, {}, b"")
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            headers = {"ETag": etag} if state.etags else {}
            if wanted and state.ranges and self.headers["If-Range"] == etag:
                begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(content):
                    return self.answer(path, wanted, 416, {}, b"")
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                return self.answer(path, wanted, 206, headers, content[begin:])
            return self.answer(path, wanted, 200, headers, content)

        def answer(
            self, path: str, wanted: str | None, status: int, headers: dict[str, str], body: bytes
        ) -> None:
            state.log.append((path, wanted, status))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and state.cut.get(path):
                body = body[: state.cut[path].pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def trades(name: str, rows: int = 3) -> bytes:
    text = "".join(f"{i},93576.5,0.{i + 1},1,{1735689600000000 + i},True,True\n" for i in range(rows))
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as z:  # stored: as large as its text
        z.writestr(name, text)
    return out.getvalue()


@pytest.fixture
def downloader(archive: Archive, tmp_path: Path) -> Iterator[Downloader]:
    with httpx.Client(headers={"User-Agent": USER_AGENT}) as client:
        yield Downloader(client, archive.url, tmp_path, attempts=3, backoff=0.01)


def test_a_day_is_kept_with_its_checksum_and_then_costs_no_request(
    archive: Archive, downloader: Downloader, tmp_path: Path
) -> None:
    archive.put(DAY, trades("BTCUSDT-trades-2025-01-01.csv"))
    seen: list[tuple[int, int | None]] = []
    assert downloader.fetch(DAY, lambda done, size: seen.append((done, size))) == "downloaded"
    size = len(archive.files[DAY])
    assert seen[-1] == (size, size)
    assert {p.name for p in (tmp_path / DAY).parent.iterdir()} == {
        "BTCUSDT-trades-2025-01-01.zip",
        "BTCUSDT-trades-2025-01-01.zip.CHECKSUM",
    }
    items = BinanceArchiveReader([tmp_path / DAY], market_type="spot").read()
    assert sum(len(i) for i in items if isinstance(i, Batch)) == 3
    assert archive.agents == {USER_AGENT}
    asked = len(archive.log)
    assert downloader.fetch(DAY) == "present"
    assert len(archive.log) == asked
    (tmp_path / DAY).write_bytes(b"damaged since")
    assert downloader.fetch(DAY) == "downloaded"
    assert (tmp_path / DAY).read_bytes() == archive.files[DAY]


def test_a_missing_day_is_one_request(archive: Archive, downloader: Downloader) -> None:
    assert downloader.fetch(DAY) == "missing"
    assert len(archive.log) == 1
    archive.put(DAY, b"x")
    del archive.files[DAY]
    assert downloader.fetch(DAY) == "missing"


@pytest.mark.parametrize("checksum", ["0" * 64, "no checksum"])
def test_a_wrong_checksum_keeps_nothing(
    archive: Archive, downloader: Downloader, tmp_path: Path, checksum: str
) -> None:
    archive.put(DAY, trades("a.csv"), checksum)
    assert downloader.fetch(DAY) == "bad"
    assert list((tmp_path / DAY).parent.iterdir()) == []
    assert len(archive.asked(DAY)) <= 1


def test_a_busy_server_is_asked_again_when_it_says(
    archive: Archive, downloader: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    archive.put(DAY, trades("a.csv"))
    archive.first[DAY + ".CHECKSUM"] = [(503, {})]
    archive.first[DAY] = [(429, {"Retry-After": "7"}), (503, {})]
    assert downloader.fetch(DAY) == "downloaded"
    assert [status for _, status in archive.asked(DAY)] == [429, 503, 200]
    assert waits == [0.01, 7.0, 0.02]


def test_a_server_that_stays_busy_or_refuses_is_an_error(archive: Archive, downloader: Downloader) -> None:
    archive.put(DAY, trades("a.csv"))
    archive.first[DAY] = [(503, {})] * 3
    with pytest.raises(UserError, match=r"HTTP 503, 3 times in a row: run the same command again later"):
        downloader.fetch(DAY)
    archive.first[DAY] = [(503, {"Retry-After": "86400"})]
    with pytest.raises(UserError, match="asks to wait 86400 s"):
        downloader.fetch(DAY)
    archive.first[DAY] = [(403, {})]
    with pytest.raises(UserError, match="HTTP 403"):
        downloader.fetch(DAY)
    downloader.base_url = "http://127.0.0.1:9"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: .*3 times in a row"):
        downloader.fetch(DAY)


def test_a_cut_connection_goes_on_where_it_was(archive: Archive, downloader: Downloader) -> None:
    archive.put(DAY, trades("a.csv", 2000))
    archive.cut[DAY] = [1000, 5000]
    assert downloader.fetch(DAY) == "downloaded"
    assert archive.asked(DAY) == [(None, 200), ("bytes=1000-", 206), ("bytes=6000-", 206)]


def test_a_later_run_goes_on_with_a_half_file(
    archive: Archive, downloader: Downloader, tmp_path: Path
) -> None:
    archive.put(DAY, trades("a.csv", 2000))
    archive.cut[DAY] = [1000]
    downloader.attempts = 1
    with pytest.raises(UserError):
        downloader.fetch(DAY)
    part = tmp_path / (DAY + ".part")
    assert part.stat().st_size == 1000
    assert downloader.fetch(DAY) == "downloaded"
    assert archive.asked(DAY)[-1] == ("bytes=1000-", 206)
    assert not part.exists()


def test_a_file_that_changed_meanwhile_is_begun_anew(archive: Archive, downloader: Downloader) -> None:
    archive.put(DAY, trades("a.csv", 2000))
    archive.cut[DAY] = [1000]
    downloader.attempts = 1
    with pytest.raises(UserError):
        downloader.fetch(DAY)
    archive.put(DAY, trades("b.csv", 2100))
    assert downloader.fetch(DAY) == "downloaded"
    assert archive.asked(DAY)[-1] == ("bytes=1000-", 200)


def test_a_spoilt_half_file_is_begun_anew(archive: Archive, downloader: Downloader, tmp_path: Path) -> None:
    archive.put(DAY, trades("a.csv", 2000))
    archive.cut[DAY] = [1000]
    downloader.attempts = 1
    with pytest.raises(UserError):
        downloader.fetch(DAY)
    part = tmp_path / (DAY + ".part")
    part.write_bytes(b"?" * len(archive.files[DAY]))
    assert downloader.fetch(DAY) == "downloaded"
    assert [status for _, status in archive.asked(DAY)] == [200, 416, 200]


def test_without_etag_or_ranges_a_half_file_is_begun_anew(archive: Archive, downloader: Downloader) -> None:
    archive.put(DAY, trades("a.csv", 2000))
    archive.etags = False
    archive.cut[DAY] = [1000]
    assert downloader.fetch(DAY) == "downloaded"
    assert archive.asked(DAY) == [(None, 200), (None, 200)]
    archive.put(NEXT, trades("b.csv", 2000))
    archive.etags, archive.ranges = True, False
    archive.cut[NEXT] = [1000]
    assert downloader.fetch(NEXT) == "downloaded"
    assert archive.asked(NEXT) == [(None, 200), ("bytes=1000-", 200)]


def test_paths_follow_the_published_layout() -> None:
    first, last = date(2024, 2, 28), date(2024, 3, 1)
    assert archive_paths(Market.um, "bookTicker", "BTCUSDT", first, last) == [
        f"data/futures/um/daily/bookTicker/BTCUSDT/BTCUSDT-bookTicker-{day}.zip"
        for day in ("2024-02-28", "2024-02-29", "2024-03-01")
    ]
    assert archive_paths(Market.cm, "fundingRate", "BTCUSD_PERP", first, last) == [
        f"data/futures/cm/monthly/fundingRate/BTCUSD_PERP/BTCUSD_PERP-fundingRate-{month}.zip"
        for month in ("2024-02", "2024-03")
    ]
    assert archive_paths(Market.option, "BVOLIndex", "BTCBVOLUSDT", first, first) == [
        "data/option/daily/BVOLIndex/BTCBVOLUSDT/BTCBVOLUSDT-BVOLIndex-2024-02-28.zip"
    ]
    assert archive_paths(Market.spot, "trades", "BTCUSDT", date(2025, 1, 1), date(2025, 1, 1)) == [DAY]


@pytest.mark.parametrize(
    ("market", "kind", "symbol", "end", "message"),
    [
        (Market.spot, "metrics", "BTCUSDT", date(2024, 1, 2), "spot has trades, aggTrades"),
        (Market.spot, "trades", "../etc", date(2024, 1, 2), "--symbol"),
        (Market.spot, "trades", "BTCUSDT", date(2023, 1, 1), "is after"),
    ],
)
def test_what_cannot_be_asked_for(market: Market, kind: str, symbol: str, end: date, message: str) -> None:
    with pytest.raises(UserError, match=message):
        archive_paths(market, kind, symbol, date(2024, 1, 1), end)


def test_checksum_files() -> None:
    sha = "AB" * 32
    assert parse_checksum(f"{sha}  a.zip\n", "a.zip") == sha.lower()
    for text in (f"{sha}  b.zip", sha, "", "<html>"):
        with pytest.raises(ValueError, match="checksum"):
            parse_checksum(text, "a.zip")


def test_retry_after_in_seconds_or_as_a_date() -> None:
    now = datetime(2024, 1, 1, 0, 0, tzinfo=UTC)
    assert retry_after("120", now) == 120
    assert retry_after("Mon, 01 Jan 2024 00:01:30 GMT", now) == 90
    assert retry_after("Sun, 31 Dec 2023 00:00:00 GMT", now) == 0
    assert retry_after(None, now) == retry_after("soon", now) == 0


def run(archive: Archive, folder: Path, *more: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(download_command)
    arguments = ["--market", "spot", "--kind", "trades", "--symbol", "BTCUSDT", "--start", "2025-01-01"]
    result = CliRunner().invoke(
        app,
        [*arguments, "--to", str(folder), "--pause", "0", *more],
        env={"MARKETPRISM_ARCHIVE_URL": archive.url},
    )
    return result.exit_code, result.output


def test_the_command_reports_and_exits(archive: Archive, tmp_path: Path) -> None:
    code, output = run(archive, tmp_path)
    assert (code, "1 missing" in output) == (1, True)
    assert run(archive, tmp_path, "--base-url", "data.binance.vision")[0] == 1
    archive.put(DAY, trades("a.csv"))
    code, output = run(archive, tmp_path, "--end", "2025-01-02")
    assert code == 0
    assert f"missing: {NEXT}" in output
    assert "1 downloaded, 0 already there, 1 missing, 0 with a wrong checksum" in output
    archive.put(NEXT, trades("b.csv"), "0" * 64)
    code, output = run(archive, tmp_path, "--end", "2025-01-02")
    assert code == 1
    assert f"wrong checksum, not kept: {NEXT}" in output
    assert "0 downloaded, 1 already there, 0 missing, 1 with a wrong checksum" in output
