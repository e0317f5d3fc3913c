"""When a raw row could first have been used: two seeds that decide it, and the rule (DESIGN §3)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from python_udfs.errors import BadFileError
from python_udfs.ingest.records import COLUMNS, MARKET_TYPES, NO_TIME, Kind
from python_udfs.settings import REPOSITORY

Clock = Literal["event", "received"]

AVAILABILITY_SEED: Final = REPOSITORY / "seeds" / "source_availability.csv"
INSTRUMENTS_SEED: Final = REPOSITORY / "seeds" / "instruments.csv"
_MICROSECONDS: Final = 1000  # in a millisecond


class Instrument(NamedTuple):
    """What the loader takes rows of: one line of seeds/instruments.csv."""

    exchange: str
    market_type: str
    symbol: str


@dataclass(frozen=True, slots=True)
class Availability:
    """How `known_at` follows from a row's stamps, for one (data_source, kind).

    Attributes:
        clock: `event`: the event time counts, and the receive time only of late rows;
            `received`: never before it was received.
        publication_lag_ms: from the event time to the moment the venue publishes it.
        max_latency_ms: received later than this after its event time, a row is late; None: no row is.
    """

    clock: Clock
    publication_lag_ms: int
    max_latency_ms: int | None


def known_at(
    timestamp: npt.NDArray[np.int64], received_at: npt.NDArray[np.int64], availability: Availability
) -> npt.NDArray[np.int64]:
    """When each row could have been used, shape (n,), microseconds since the epoch.

    A recorder's clock may run slow, so a receive time never makes a row known before its event time plus
    the lag; it may jitter, so on the event clock it counts only past `max_latency_ms`.

    Args:
        timestamp: event times, shape (n,), microseconds.
        received_at: the recorder's times, shape (n,), microseconds; `NO_TIME` where there is none.
        availability: the source's rule.
    """
    published = timestamp + availability.publication_lag_ms * _MICROSECONDS
    counts = received_at != NO_TIME
    if availability.clock == "event":
        if availability.max_latency_ms is None:
            return published
        counts &= received_at - timestamp > availability.max_latency_ms * _MICROSECONDS
    return np.where(counts, np.maximum(published, received_at), published)


def read_availability(path: Path = AVAILABILITY_SEED) -> dict[tuple[str, Kind], Availability]:
    """(data_source, kind) to its rule.

    Raises:
        BadFileError: no such file, a column is missing, a value is wrong or a pair is given twice.
    """
    found: dict[tuple[str, Kind], Availability] = {}
    columns = ("data_source", "kind", "clock", "publication_lag_ms", "max_latency_ms")
    for line, row in _rows(path, columns):
        if row["kind"] not in COLUMNS:
            raise BadFileError(str(path), f"unknown kind {row['kind']!r}", line=line, field="kind")
        if row["clock"] not in get_args(Clock):
            raise BadFileError(
                str(path), f"{row['clock']!r} is neither event nor received", line=line, field="clock"
            )
        key = (row["data_source"], cast("Kind", row["kind"]))
        if key in found:
            raise BadFileError(str(path), f"{key[0]}, {key[1]} is there twice", line=line)
        found[key] = Availability(
            cast("Clock", row["clock"]),
            _milliseconds(path, line, "publication_lag_ms", row),
            _milliseconds(path, line, "max_latency_ms", row) if row["max_latency_ms"] else None,
        )
    return found


def read_instruments(path: Path = INSTRUMENTS_SEED) -> frozenset[Instrument]:
    """The known instruments.

    Raises:
        BadFileError: no such file, a column is missing, a value is wrong or an instrument is there twice.
    """
    found: set[Instrument] = set()
    for line, row in _rows(path, Instrument._fields):
        instrument = Instrument(row["exchange"], row["market_type"], row["symbol"])
        if instrument.market_type not in MARKET_TYPES:
            raise BadFileError(
                str(path),
                f"{instrument.market_type!r} is none of {', '.join(MARKET_TYPES)}",
                line=line,
                field="market_type",
            )
        if instrument in found:
            raise BadFileError(str(path), f"{' '.join(instrument)} is there twice", line=line)
        found.add(instrument)
    return frozenset(found)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, fields) per row. Every field of `columns` is there, and not empty if it is in the key."""
    try:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f, strict=True)
            if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
                raise BadFileError(str(path), f"no column {missing[0]!r}", line=1, field=missing[0])
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise BadFileError(
                        str(path), f"not {len(reader.fieldnames or ())} fields, as in the header", line=line
                    )
                for column in columns:
                    if not row[column] and column != "max_latency_ms":
                        raise BadFileError(str(path), "empty", line=line, field=column)
                yield line, row
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise BadFileError(str(path), f"cannot be read: {e}") from e


def _milliseconds(path: Path, line: int, field: str, row: dict[str, str]) -> int:
    text = row[field]
    if not (text.isascii() and text.isdigit()):
        raise BadFileError(
            str(path), f"{text!r} is no whole number of milliseconds, 0 or more", line=line, field=field
        )
    return int(text)
