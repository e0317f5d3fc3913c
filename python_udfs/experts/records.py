"""An expert's decision as text, and what is wrong with it. Pure: no database, no clock."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import yaml

from python_udfs.errors import BadFileError
from python_udfs.ingest.availability import Instrument
from python_udfs.settings import REPOSITORY

T = TypeVar("T")
Intent = Literal["buy", "hold", "sell"]
SCORES: Final[dict[Intent, int]] = {"sell": -1, "hold": 0, "buy": 1}
REQUIRED: Final = (
    "expert",
    "exchange",
    "market_type",
    "symbol",
    "decided_at",
    "intent",
    "horizon",
    "rationale",
)
OPTIONAL: Final = ("size", "confidence", "outcome", "entered_at")
LABELS_YML: Final = REPOSITORY / "dbt_project" / "models" / "labels" / "bucket_labels.yml"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HORIZON: Final = re.compile(r"(\d+)\s*(b|buckets?|s|sec|seconds?)")
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Decision:
    """One version of a decision. Times: µs since the epoch; entered_at None: when it comes in here.

    size: base coin, or contracts for inverse. confidence: 0 to 1. horizon: the label's suffix, `3` or `30s`.
    line: where its record begins, 1-based; 0: entered by hand.
    """

    expert: str
    instrument: Instrument
    decided_at: int
    entered_at: int | None
    intent: Intent
    size: float | None
    confidence: float | None
    horizon: str
    rationale: str
    outcome: str = ""
    line: int = 0

    @property
    def decision_id(self) -> str:
        """The same for every version: who, what, when, how far ahead."""
        key = "\x1f".join([self.expert, *self.instrument, str(self.decided_at), self.horizon])
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    @property
    def content(self) -> tuple[object, ...]:
        """What a correction may change."""
        return self.intent, self.size, self.confidence, self.rationale, self.outcome


@dataclass(frozen=True, slots=True)
class BadLine:
    """What is wrong with a field of a line; `reason` begins with a stable code and a colon."""

    line: int
    field: str
    reason: str
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a decision is held against: the known instruments, the horizons (label suffixes), now (µs)."""

    instruments: Collection[Instrument]
    horizons: Sequence[str]
    now: int


def read_horizons(path: Path = LABELS_YML) -> list[str]:
    """The horizons that there are labels for, as suffixes of label_known_at_: `1`, …, `300s`.

    Raises:
        BadFileError: the file lists none.
    """
    models = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)["models"]
    names = [column["name"] for model in models for column in model.get("columns", [])]
    found = [m[1] for m in (re.fullmatch(r"label_known_at_(\d+s?)", name) for name in names) if m]
    if not found:
        raise BadFileError(str(path), "lists no label_known_at_*")
    return found


def show_horizon(horizon: str) -> str:
    """`30s` as `30 s`, `3` as `3 buckets`."""
    return f"{horizon[:-1]} s" if horizon.endswith("s") else f"{horizon} buckets"


def read_file(path: Path, rules: Rules) -> tuple[list[Decision], list[BadLine]]:
    """The decisions of a CSV file, and every fault of the lines that hold none.

    Raises:
        BadFileError: no file, no text, no usable header, a quote that never closes: no line can be trusted.
    """
    text = _text(path)
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, strict=True)
    names: list[str] | None = None
    decisions: list[Decision] = []
    bad: list[BadLine] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as e:
            raise BadFileError(
                str(path), f"{e}: is a quote open in the record that begins here?", line=line
            ) from e
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            names = _header(path, line, cells)
            continue
        raw = "".join(lines[line - 1 : reader.line_num]).encode(errors="replace").decode()
        if len(cells) != len(names):
            reason = (
                f"bad_record: {len(cells)} fields where the header has {len(names)}: is a comma not quoted?"
            )
            bad.append(BadLine(line, "", reason, raw))
            continue
        found = parse(dict(zip(names, cells, strict=True)), rules, line)
        if isinstance(found, Decision):
            decisions.append(found)
        else:
            bad += [BadLine(line, field, reason, raw) for field, reason in found]
    if names is None:
        raise BadFileError(str(path), f"empty: expected a header with {', '.join(REQUIRED)}")
    if not decisions and not bad:
        raise BadFileError(str(path), "no decision below the header")
    return decisions, bad


def parse(cells: Mapping[str, str], rules: Rules, line: int = 0) -> Decision | list[tuple[str, str]]:
    """One decision from texts by name, or all that is wrong with them: (field, reason)."""
    fields = _Fields(cells)
    get = fields.get
    instrument = Instrument(get("exchange", str, ""), get("market_type", str, ""), get("symbol", str, ""))
    if all(instrument) and instrument not in rules.instruments:
        near = sorted(":".join(i) for i in rules.instruments if i.symbol == instrument.symbol)
        known = f"known: {', '.join(near)}" if near else "add it to seeds/instruments.csv"
        fields.faults.append(
            ("symbol", f"unknown_symbol: {':'.join(instrument)} is not in seeds/instruments.csv; {known}")
        )
    decision = Decision(
        expert=get("expert", str, ""),
        instrument=instrument,
        decided_at=get("decided_at", lambda text: _time(text, rules.now), 0),
        entered_at=get("entered_at", lambda text: _time(text, rules.now), None),
        intent=get("intent", _intent, "hold"),
        size=get("size", lambda text: _number(text, math.inf), None),
        confidence=get("confidence", lambda text: _number(text, 1), None),
        horizon=get("horizon", lambda text: _horizon(text, rules.horizons), ""),
        rationale=get("rationale", str, ""),
        outcome=get("outcome", str, ""),
        line=line,
    )
    if decision.entered_at is not None and decision.decided_at > decision.entered_at:
        fields.faults.append(
            ("entered_at", "out_of_range: before decided_at; expected when it was written down")
        )
    return fields.faults or decision


class _Fields:
    """The texts of a line, and what is wrong with them: (field, reason)."""

    def __init__(self, cells: Mapping[str, str]) -> None:
        self._cells = cells
        self.faults: list[tuple[str, str]] = []

    def get(self, name: str, convert: Callable[[str], T], default: T) -> T:
        """The value; `default` where there is none, or a fault."""
        text = self._cells.get(name, "").strip()
        reason = ""
        if any("\udc80" <= c <= "\udcff" for c in text):
            reason = "not_utf8: save the file as UTF-8"
        elif "\0" in text:
            reason = "bad_value: holds a NUL byte"
        elif not text and name in REQUIRED:
            reason = "missing_field: blank"
        elif text:
            try:
                return convert(text)
            except ValueError as e:
                reason = str(e)
        if reason:
            self.faults.append((name, reason))
        return default


def _text(path: Path) -> str:
    """The file without its byte-order mark; bytes that are not UTF-8 stay visible as lone surrogates."""
    try:
        content = path.read_bytes()
    except OSError as e:
        raise BadFileError(str(path), f"cannot be read: {e.strerror}") from e
    if content.startswith(_UTF16):
        raise BadFileError(str(path), "is UTF-16: save it as CSV UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _header(path: Path, line: int, cells: Sequence[str]) -> list[str]:
    names = [cell.encode(errors="replace").decode().strip().lower() for cell in cells]
    known = (*REQUIRED, *OPTIONAL)
    expected = f"expected {', '.join(REQUIRED)}, and if you like {', '.join(OPTIONAL)}"
    if not set(names) & set(known):
        hint = "; separate columns by commas" if ";" in cells[0] or "\t" in cells[0] else ""
        raise BadFileError(str(path), f"no header: {expected}{hint}", line=line)
    for name in names:
        if name not in known:
            raise BadFileError(str(path), f"unknown column: {expected}", line=line, field=name)
        if names.count(name) > 1:
            raise BadFileError(str(path), "the column is there twice", line=line, field=name)
    for name in REQUIRED:
        if name not in names:
            raise BadFileError(str(path), f"no such column in the header: {expected}", line=line, field=name)
    return names


def _time(text: str, now: int) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as e:
        raise ValueError(f"bad_time: {text!r}; expected such as 2026-01-05T00:10:00.250Z") from e
    if moment.tzinfo is None:
        raise ValueError(f"no_zone: {text!r} has no time zone; expected such as {text}Z or {text}+08:00")
    since = moment - _EPOCH
    micros = (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
    if moment.year < 2000 or micros > now:
        raise ValueError(f"out_of_range: {text!r}; expected a time after 2000 that is not in the future")
    return micros


def _intent(text: str) -> Intent:
    if text.lower() not in SCORES:
        raise ValueError(f"bad_value: {text!r}; expected buy, sell or hold")
    return cast("Intent", text.lower())


def _number(text: str, most: float) -> float:
    allowed = "a number above 0" if most == math.inf else "a number from 0 to 1"
    try:
        value = float(text)
    except ValueError as e:
        raise ValueError(f"bad_number: {text!r}; expected {allowed}") from e
    if not math.isfinite(value) or value < 0 or value > most or (most == math.inf and value == 0):
        raise ValueError(f"out_of_range: {text!r}; expected {allowed}")
    return value


def _horizon(text: str, horizons: Sequence[str]) -> str:
    found = _HORIZON.fullmatch(text.lower())
    horizon = found[1] + ("s" if found[2].startswith("s") else "") if found else ""
    if horizon not in horizons:
        listed = ", ".join(show_horizon(h) for h in horizons)
        raise ValueError(f"unknown_horizon: {text!r} is no horizon of the labels; expected one of {listed}")
    return horizon
