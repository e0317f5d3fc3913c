"""Which reader takes which files: told from names and first bytes, never from guesses about the content."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from python_udfs.errors import BadFileError, UserError
from python_udfs.ingest.records import Reader

# hftbacktest's collector with the market put before: spot_btcusdt_20240808.gz
_CAPTURE: Final = re.compile(
    r"(?P<prefix>spot|usdm|cm)_(?P<symbol>.+)_(?P<day>\d{4}[01]\d[0-3]\d)(\.dat|\.txt)?(\.gz)?"
)
_PREFIX_MARKETS: Final = {"spot": "spot", "usdm": "linear", "cm": "inverse"}
# A line of a capture: receive time in ms, µs or ns, then the message.
_CAPTURE_LINE: Final = re.compile(rb'\s*\d{13,19} \{.{0,100}?"(stream|lastUpdateId)"')
_ARCHIVE: Final = re.compile(
    r".+-(trades|aggTrades|bookTicker|bookDepth|metrics|fundingRate|liquidationSnapshot|BVOLIndex)"
    r"-\d{4}-\d{2}(-\d{2})?\.(zip|csv|csv\.gz)"
)
# The public archive's folders: data/spot/daily/trades/…, data/futures/um/…, data/option/…
_ARCHIVE_MARKETS: Final = (
    (re.compile(r"/futures/um/"), "linear"),
    (re.compile(r"/futures/cm/"), "inverse"),
    (re.compile(r"/spot/"), "spot"),
    (re.compile(r"/option/|-BVOLIndex-[^/]*$"), "option"),
)
_TARDIS: Final = re.compile(
    r"[a-z0-9-]+_(trades|book_snapshot_25|derivative_ticker|liquidations)_\d{4}-\d{2}-\d{2}_.+\.csv(\.gz)?"
)
_MAPPABLE: Final = (".csv", ".csv.gz", ".parquet")
_SIDE_FILES: Final = (".CHECKSUM", ".part")  # what the archive and its download put beside the data
_MANIFEST: Final = "manifest.json"
_HEAD_BYTES: Final = 4096
_FORMATS: Final = """what can be read:
  Binance websocket captures  lines of `<receive time> {"stream": ...}`, also .gz
  Binance public archive      BTCUSDT-trades-2024-08-08.zip and the like, under their names there
  Tardis CSV                  binance-futures_trades_2024-08-08_BTCUSDT.csv.gz and the like
  recorded series             open interest, long/short ratio, funding, DVOL, liquidations (JSON, CSV)
  a generated market          a folder made by `marketprism ingest generate`
  any CSV or Parquet          with --mapping FILE"""


@dataclass(slots=True)
class Detection:
    """What is to be loaded, in order.

    Attributes:
        readers: one a load.
        unknown: files of given folders that nobody recognises.
        errors: files that cannot be loaded, as it was seen before they were read.
    """

    readers: list[Reader] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    errors: list[UserError] = field(default_factory=list)


def readers_for(
    paths: list[Path], *, market_type: str | None = None, mapping: Path | None = None
) -> list[Reader]:
    """The readers of `detect`.

    Raises:
        UserError: something in `paths` cannot be loaded.
    """
    found = detect(paths, market_type=market_type, mapping=mapping)
    if found.errors:
        raise found.errors[0]
    return found.readers


def detect(paths: list[Path], *, market_type: str | None = None, mapping: Path | None = None) -> Detection:
    """Groups files into loads. Folders are walked in sorted order; a file named twice is taken once.

    Args:
        paths: files and folders.
        market_type: of the files that do not say it by name or folder.
        mapping: reads every CSV and Parquet file through this mapping.
    """
    found = Detection()
    captures: dict[tuple[Path, str, str], dict[Path, date]] = {}
    makers: list[tuple[Path, Callable[[], Reader]]] = []
    seen: set[Path] = set()
    for path, is_named in _walk(paths):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        capture = None if mapping else _capture(path)
        if capture is not None:
            prefix, symbol, day = capture
            captures.setdefault((path.parent, prefix, symbol), {})[path] = day
            continue
        try:
            make = _maker(path, market_type, mapping, is_named)
        except UserError as e:
            found.errors.append(e)
            continue
        if make is not None:
            makers.append((path, make))
        elif is_named:
            found.errors.append(BadFileError(str(path), f"nobody recognises it; {_FORMATS}"))
        else:
            found.unknown.append(path)
    for (_, prefix, _), days in captures.items():
        makers += [
            (files[0], partial(_websocket, files, _PREFIX_MARKETS[prefix])) for files in _consecutive(days)
        ]
    for _, make in sorted(makers, key=lambda item: item[0]):
        try:
            found.readers.append(make())
        except UserError as e:
            found.errors.append(e)
    return found


def _walk(paths: list[Path]) -> Iterator[tuple[Path, bool]]:
    """(path, whether it was named itself). A generated market's folder is one path."""
    for path in paths:
        if not path.is_dir():
            yield (path.parent if _is_generated(path.parent) else path), True
        elif _is_generated(path):
            yield path, True
        else:
            inner = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            for child in inner:
                if child.is_dir():
                    yield from ((p, False) for p, _ in _walk([child]))
                elif not child.name.endswith(_SIDE_FILES):
                    yield child, False


def _maker(
    path: Path, market_type: str | None, mapping: Path | None, is_named: bool
) -> Callable[[], Reader] | None:
    """What makes the reader of one path that is no named capture; None: nobody takes it.

    Raises:
        UserError: it is known what the file is, but not of which market.
    """
    if path.is_dir():
        return partial(_generated, path)
    if mapping is not None:
        return partial(_mapped, path, mapping) if is_named or path.name.endswith(_MAPPABLE) else None
    if _ARCHIVE.fullmatch(path.name):
        told = [m for pattern, m in _ARCHIVE_MARKETS if pattern.search(path.resolve().as_posix())]
        market = told[0] if told else market_type
        if market is None:
            raise BadFileError(
                str(path),
                "the name does not say which market it is of: give --market, or keep the archive's folders "
                "(data/spot/..., data/futures/um/...)",
            )
        return partial(_archive, path, market)
    if _TARDIS.fullmatch(path.name):
        return partial(_tardis, path)
    if _CAPTURE_LINE.match(_head(path)):
        return partial(_websocket, [path], market_type)
    return _series(path)


def _capture(path: Path) -> tuple[str, str, date] | None:
    name = _CAPTURE.fullmatch(path.name)
    if name is None:
        return None
    try:
        day = date.fromisoformat(name["day"])
    except ValueError:
        return None
    return name["prefix"], name["symbol"], day


def _consecutive(days: dict[Path, date]) -> Iterator[list[Path]]:
    """Files by day, cut where a day is missing: the book cannot be carried over a gap."""
    group: list[Path] = []
    for path in sorted(days, key=lambda p: (days[p], p.name)):
        if group and days[path] - days[group[-1]] > timedelta(days=1):
            yield group
            group = []
        group.append(path)
    yield group


def _head(path: Path) -> bytes:
    """The first bytes, unpacked; empty where there are none to be had (the reader will say why)."""
    try:
        with path.open("rb") as f:
            head = f.read(_HEAD_BYTES)
        if head[:2] != b"\x1f\x8b":
            return head
        with gzip.open(path) as unpacked:
            return unpacked.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def _is_generated(folder: Path) -> bool:
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == "marketprism-generated"


# Readers are imported when their first file is met: each brings its own libraries along.


def _websocket(paths: list[Path], market_type: str | None) -> Reader:
    from python_udfs.ingest.binance_ws import BinanceWebsocketReader

    return BinanceWebsocketReader(paths, market_type)


def _archive(path: Path, market_type: str) -> Reader:
    from python_udfs.ingest.binance_archive import BinanceArchiveReader

    return BinanceArchiveReader([path], market_type=market_type)


def _tardis(path: Path) -> Reader:
    from python_udfs.ingest.tardis import TardisReader

    return TardisReader([path])


def _mapped(path: Path, mapping: Path) -> Reader:
    from python_udfs.ingest.mapping import MappedReader

    return MappedReader([path], mapping)


def _series(path: Path) -> Callable[[], Reader] | None:
    from python_udfs.ingest.series import SeriesReader

    return partial(SeriesReader, path) if SeriesReader.accepts(path) else None


def _generated(folder: Path) -> Reader:
    from python_udfs.ingest.generator import GeneratedReader

    return GeneratedReader(folder)
