"""Recorded data, arriving as it once did: in the order of knowledge, through the loader, at a multiple of real time."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from python_udfs.errors import UserError
from python_udfs.ingest.availability import Instrument, known_at, read_availability
from python_udfs.ingest.loader import identify, load
from python_udfs.ingest.records import Batch, Item, Kind, LoadResult, Reader, Reject, Watermark
from python_udfs.settings import settings

SECOND_US: Final = 1_000_000
_MINUTE_US: Final = 60 * SECOND_US
_CLOCKS: Final[tuple[Kind, ...]] = ("trades", "orderbooks")  # the feeds that have a watermark


@dataclass(frozen=True, slots=True)
class Step:
    """One load of a replay.

    Attributes:
        until: what was known before this moment is loaded, µs since the epoch.
        done: share of the recording that is loaded, 0 to 1.
        behind_s: wall seconds that the load was finished too late by.
    """

    until: int
    done: float
    behind_s: float
    result: LoadResult

    @property
    def at(self) -> datetime:
        """`until` as a time."""
        return datetime.fromtimestamp(self.until / SECOND_US, UTC)


@dataclass(slots=True)
class _Recording:
    """A recording on disk: by minute of knowledge, so that no more than one minute is in memory.

    Attributes:
        content: a digest of what the readers read.
        feeds: per clock and instrument, the publication lag in µs, behind which the feed is complete.
        ends: the readers' own watermarks.
    """

    folder: Path
    content: str
    minutes: set[int] = field(default_factory=set)
    rejects: list[Reject] = field(default_factory=list)
    feeds: dict[tuple[Kind, Instrument], int] = field(default_factory=dict)
    ends: list[Watermark] = field(default_factory=list)
    first: int = 1 << 62
    last: int = 0

    def minute(self, minute: int) -> Iterator[tuple[Batch, Any]]:
        """The minute's batches, each with the time of knowledge of its rows (µs)."""
        with (self.folder / str(minute)).open("rb") as file:
            while True:
                try:
                    yield pickle.load(file)
                except EOFError:
                    return


@dataclass(slots=True)
class _Chunk:
    """What came to be known in one step, as a reader for the loader. Its identity is the content's and the step's."""

    data_source: str
    options: dict[str, str]
    items: list[Item]
    paths: list[Path] = field(default_factory=list)

    def read(self) -> Iterator[Item]:
        yield from self.items


def replay(
    readers: Sequence[Reader],
    speed: float,
    *,
    step_s: float | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
    on_read: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> bool:
    """Loads what the readers read in steps, each when it is due, in the order of `known_at`. False: it was stopped.

    Twice changes nothing: a step that was loaded is skipped, and rows that are there stay as they are.

    Args:
        speed: market seconds per wall second; 0: no waiting.
        step_s: market seconds a load; default: one wall second's, or a minute without waiting.
        on_step: called after each load.
        on_read: called with the rows read so far, before the first load.
        stop: when set, the load under way is finished and no other begun.

    Raises:
        UserError: there is nothing to load, or a file cannot be read.
    """
    stop = stop or threading.Event()
    if not readers:
        raise UserError("nothing to replay: no file in there is recognised")
    step_us = max(round((step_s or speed or 60) * SECOND_US), SECOND_US // 10)
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="replay-", dir=settings().data_dir) as folder:
        recording = _record(readers, Path(folder), on_read)
        began = time.monotonic()
        for chunk, until in _chunks(recording, readers[0].data_source, step_us):
            due = began + (until - recording.first) / SECOND_US / speed if speed else began
            if stop.wait(max(due - time.monotonic(), 0)):
                return False
            result = load(chunk)
            done = (until - recording.first) / max(recording.last + 1 - recording.first, 1)
            behind = max(time.monotonic() - due, 0) if speed else 0.0
            on_step(Step(until, min(done, 1.0), behind, result))
    return True


def _record(readers: Sequence[Reader], folder: Path, on_read: Callable[[int], None]) -> _Recording:
    """Reads everything once and sorts it into minutes of knowledge."""
    rules = read_availability()
    digest = hashlib.sha256("".join(sorted(identify(reader)[0] for reader in readers)).encode())
    found = _Recording(folder, digest.hexdigest())
    rows = 0
    for reader in readers:
        for item in reader.read():
            match item:
                case Reject():
                    found.rejects.append(item)
                case Watermark():
                    found.ends.append(item)
                case Batch() if len(item):
                    columns: dict[str, Any] = dict(item.columns)
                    if "data_source" not in columns:
                        columns["data_source"] = np.full(len(item), reader.data_source, dtype=np.object_)
                    known = np.zeros(len(item), dtype=np.int64)
                    for source in np.unique(columns["data_source"].astype(str)):
                        if (rule := rules.get((source, item.kind))) is None:
                            raise UserError(
                                f"seeds/source_availability.csv does not say when {item.kind} of {source!r} are known: "
                                "add a line"
                            )
                        mine = columns["data_source"] == source
                        known[mine] = known_at(columns["timestamp"][mine], columns["received_at"][mine], rule)
                        if item.kind in _CLOCKS:
                            _note_feeds(found, item.kind, columns, mine, rule.publication_lag_ms * 1000)
                    _put(found, Batch(item.kind, columns, item.file, item.lines), known)
                    rows += len(item)
                    on_read(rows)
                case _:
                    pass
    if not rows:
        raise UserError("nothing to replay: no rows")
    return found


def _note_feeds(found: _Recording, kind: Kind, columns: dict[str, Any], mine: Any, lag_us: int) -> None:
    names = zip(*(columns[name][mine].astype(str) for name in Instrument._fields), strict=True)
    for instrument in {Instrument(*map(str, name)) for name in names}:
        key = (kind, instrument)
        found.feeds[key] = max(lag_us, found.feeds.get(key, 0))


def _put(found: _Recording, batch: Batch, known: Any) -> None:
    minutes = known // _MINUTE_US
    for minute in np.unique(minutes):
        mine = minutes == minute
        columns = {name: values[mine] for name, values in batch.columns.items()}
        part = (Batch(batch.kind, columns, batch.file, batch.lines[mine]), known[mine])
        with (found.folder / str(minute)).open("ab") as file:
            pickle.dump(part, file, protocol=pickle.HIGHEST_PROTOCOL)
        found.minutes.add(int(minute))
    found.first, found.last = min(found.first, int(known.min())), max(found.last, int(known.max()))


def _chunks(found: _Recording, data_source: str, step_us: int) -> Iterator[tuple[_Chunk, int]]:
    """Steps on a fixed grid, those without rows left out; the last brings the readers' own watermarks, too."""
    held: dict[int, list[Item]] = {}
    rejects: list[Item] = list(found.rejects)
    minutes = sorted(found.minutes)
    for position, minute in enumerate(minutes):
        for batch, known in found.minute(minute):
            steps = known // step_us
            for step in np.unique(steps):
                mine = steps == step
                columns = {name: values[mine] for name, values in batch.columns.items()}
                part = Batch(batch.kind, columns, batch.file, batch.lines[mine])
                held.setdefault(int(step), []).append(part)
        is_last = position + 1 == len(minutes)
        complete = 1 << 62 if is_last else minutes[position + 1] * _MINUTE_US
        for step in sorted(step for step in held if (step + 1) * step_us <= complete):
            items, until = held.pop(step), (step + 1) * step_us
            marks = [Watermark(kind, *who, until - lag) for (kind, who), lag in found.feeds.items()]
            ends = found.ends if is_last and not held else []
            options = {"content": found.content, "step_us": str(step_us), "until": str(until)}
            yield _Chunk(data_source, options, [*rejects, *items, *marks, *ends]), until
            rejects = []
