"""Decisions into the database, once and whole; and their scores and states out of it."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.dbt import Dbt
from python_udfs.errors import UserError
from python_udfs.experts.records import BadLine, Decision, Rules, read_file, read_horizons
from python_udfs.ingest.availability import read_instruments
from python_udfs.settings import settings

MODELS: Final = ("expert_decision_versions", "expert_context", "expert_scores", "expert_summary")
KIND: Final = "expert_decisions"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INSERT: Final = (
    "insert into expert_decisions (decision_id, expert, exchange, market_type, symbol, decided_at, entered_at, "
    "entered_at_source, intent, size, confidence, horizon, rationale, outcome, file, line, load_id) values"
)

_DECISION: Final = (
    "exchange",
    "market_type",
    "symbol",
    "decided_at",
    "entered_at",
    "entered_at_source",
    "intent",
    "size",
    "confidence",
    "horizon",
)
_OUTCOME: Final = (
    "reported",
    "bucket_id",
    "as_of",
    "known_at",
    "return",
    "class",
    "hit",
    "signed_return",
    "net_return",
    "hindsight",
    "unscored",
)


@dataclass(frozen=True, slots=True)
class Version:
    """What is stored of a version of a decision. entered_at: µs."""

    entered_at: int
    content: tuple[object, ...]
    load_id: str
    line: int


@dataclass(slots=True)
class Plan:
    """What is to be stored, and why the rest is not.

    new: first versions. corrections: later ones. unchanged: there already. duplicates: lines that say what a line
    before them says.
    """

    new: list[Decision]
    corrections: list[Decision]
    unchanged: int
    duplicates: int
    bad: list[BadLine]


def rules(now: datetime | None = None) -> Rules:
    """The rules of this project and moment."""
    return Rules(read_instruments(), read_horizons(), _micros(now or datetime.now(UTC)))


def plan(
    decisions: Sequence[Decision], stored: dict[str, list[Version]], now: int, load_id: str = ""
) -> Plan:
    """Which decisions are to be stored.

    The same file loaded again changes nothing, even after corrections; nor does a line that says what the latest
    version says. Versions of a decision come in the order of their entered_at.

    Args:
        decisions: of one file (`load_id`), in the order of its lines.
        stored: the versions that there are, by decision_id.
        now: µs; the entered_at of decisions that bring none.
    """
    made = Plan([], [], 0, 0, [])
    ours: dict[str, list[Version]] = {}
    for d in decisions:
        version = Version(now if d.entered_at is None else d.entered_at, d.content, load_id, d.line)
        before = sorted(stored.get(d.decision_id, []), key=lambda v: v.entered_at)
        here = ours.setdefault(d.decision_id, [])
        if any((v.entered_at, v.content) == (version.entered_at, d.content) for v in here):
            made.duplicates += 1
            continue
        if any(_says_the_same(v, d, load_id, is_last=v is before[-1]) for v in before):
            made.unchanged += 1
            continue
        of_load = [*(v for v in before if load_id and v.load_id == load_id), *here]
        rivals = [v for v in [*before, *here] if v.entered_at >= version.entered_at]
        rivals += of_load if d.entered_at is None else []
        if rivals:
            other = f"line {rivals[-1].line}" if rivals[-1] in of_load else "the store"
            reason = f"conflict: {other} has another version of this decision; expected a later entered_at to correct it"
            made.bad.append(BadLine(d.line, "entered_at", reason))
            continue
        (made.corrections if before or here else made.new).append(d)
        here.append(version)
    return made


def _says_the_same(v: Version, d: Decision, load_id: str, *, is_last: bool) -> bool:
    """Whether a line brings nothing beside a stored version."""
    of_load = bool(load_id) and v.load_id == load_id
    return (of_load and v.line == d.line) or (
        v.content == d.content
        and (d.entered_at == v.entered_at or (d.entered_at is None and (is_last or of_load)))
    )


def import_file(path: Path, *, quarantine: bool = False, now: datetime | None = None) -> Plan:
    """Loads a CSV file: whole, or not at all; with `quarantine` all but its bad lines, which go to that table.

    Raises:
        BadFileError: no line of the file can be read.
        UserError: no database.
    """
    held = rules(now)
    decisions, bad = read_file(path, held)
    load_id = hashlib.sha256(path.read_bytes()).hexdigest()
    with _lock(), db.connect(settings().database("serving")) as c:
        made = plan(decisions, _stored(c, decisions), held.now, load_id)
        made.bad = sorted([*bad, *made.bad], key=lambda b: b.line)
        if made.bad and not quarantine:
            made.new, made.corrections = [], []
            return made
        if made.bad:
            c.execute(
                f"insert into {settings().database('hot')}.quarantine "
                "(kind, data_source, file, line, field, reason_code, reason, raw, load_id) values",
                [
                    (
                        KIND,
                        "experts",
                        str(path),
                        b.line,
                        b.field,
                        b.reason.split(":")[0],
                        b.reason,
                        b.raw,
                        load_id,
                    )
                    for b in made.bad
                ],
            )
        _insert(c, made, held.now, str(path), load_id)
    return made


def add(decision: Decision, now: int) -> Plan:
    """Stores one decision entered by hand. now: µs."""
    with _lock(), db.connect(settings().database("serving")) as c:
        made = plan([decision], _stored(c, [decision]), now)
        _insert(c, made, now, "", "")
    return made


def build() -> None:
    """Brings context, scores and summary up to date: runs their dbt models.

    Raises:
        UserError: dbt failed.
    """
    Dbt("experts").run("run", "--select", *MODELS)


@dataclass(frozen=True, slots=True)
class ExpertPredictions:
    """What experts forecast, as of the end of the bucket it is scored from; n rows in that order."""

    as_of: npt.NDArray[np.int64]  # [n], µs UTC
    instrument: npt.NDArray[np.str_]  # [n], exchange:market_type:symbol
    bucket_id: npt.NDArray[np.uint64]  # [n]
    expert: npt.NDArray[np.str_]  # [n]
    score: npt.NDArray[np.int8]  # [n], -1 sell, 0 hold, 1 buy


def expert_predictions(client: Client, label: str) -> ExpertPredictions:
    """The experts' decisions at a label's horizon as predictions, one per expert, instrument and bucket.

    A decision is a prediction of the first bucket that ends at or after it: what the market did before is no part
    of its label. Entries in hindsight are left out; of several decisions in one bucket the last counts.

    Args:
        client: on the features database.
        label: a label's column, such as `label_cls_30s` or `label_ret_ps_3`.

    Raises:
        UserError: no such label; no scores yet.
    """
    horizon = label.rsplit("_", 1)[-1]
    if not label.startswith("label_") or horizon not in read_horizons():
        raise UserError(f"{label!r} is no label with a horizon of {', '.join(read_horizons())}")
    _require(client, "expert_scores")
    rows = client.execute(
        """
        select
            toUnixTimestamp64Micro(assumeNotNull(bucket_ts_end)) as as_of,
            concat(exchange, ':', market_type, ':', symbol) as instrument,
            assumeNotNull(bucket_id) as bucket,
            expert,
            argMax(score, (decided_at, decision_id)) as score
        from expert_scores
        where horizon = %(horizon)s and bucket_id is not null and not is_hindsight
        group by as_of, instrument, bucket, expert
        order by as_of, instrument, bucket, expert
        """,
        {"horizon": horizon},
    )
    as_of, instrument, bucket, expert, score = zip(*rows, strict=True) if rows else ((),) * 5
    return ExpertPredictions(
        np.array(as_of, dtype=np.int64),
        np.array(instrument, dtype=np.str_),
        np.array(bucket, dtype=np.uint64),
        np.array(expert, dtype=np.str_),
        np.array(score, dtype=np.int8),
    )


def summary(client: Client, *, hindsight: bool = False) -> list[dict[str, Any]]:
    """The rows of `expert_summary`, with or without entries in hindsight. client: on the features database."""
    _require(client, "expert_summary")
    query = "select * except (with_hindsight) from expert_summary where with_hindsight = %(h)s order by expert, horizon"
    return db.rows(client, query, {"h": int(hindsight)})


def tuples(client: Client, expert: str = "") -> Iterator[dict[str, Any]]:
    """(state, decision, rationale, outcome) of each decision, in the order of time; one expert's, or all.

    Decision and rationale are as they stood before the outcome was known; corrections made later are counted only.
    client: on the features database; read as a stream, it can do nothing else meanwhile.
    """
    _require(client, "expert_scores")
    query = """
        select
            s.decision_id, s.expert, s.exchange, s.market_type, s.symbol, s.decided_at, s.entered_at,
            toString(s.entered_at_source), toString(s.intent), s.size, s.confidence, s.horizon, s.rationale, s.versions,
            c.bucket_id, c.bucket_ts_end, c.state_missing, c.state, c.state_text,
            s.outcome, s.bucket_id, s.bucket_ts_end, s.label_known_at, s.label_return, s.label_class, s.hit,
            s.signed_return, s.net_return, s.is_hindsight, s.unscored
        from expert_scores as s
        inner join expert_context as c on s.decision_id = c.decision_id
        where %(expert)s = '' or s.expert = %(expert)s
        order by s.decided_at, s.decision_id
        settings join_use_nulls = 1
    """
    for row in client.execute_iter(query, {"expert": expert}):
        bucket_id, as_of, missing, numbers, texts = row[14:19]
        yield {
            "decision_id": row[0],
            "expert": row[1],
            "state": {
                "bucket_id": bucket_id,
                "as_of": as_of,
                "missing": missing or None,
                "features": {**numbers, **texts},
            },
            "decision": {**dict(zip(_DECISION, row[2:12], strict=True)), "versions": row[13]},
            "rationale": row[12],
            "outcome": dict(zip(_OUTCOME, row[19:], strict=True)),
        }


def _stored(c: Client, decisions: Sequence[Decision]) -> dict[str, list[Version]]:
    """Every stored version of the decisions of their experts."""
    experts = sorted({d.expert for d in decisions})
    found: dict[str, list[Version]] = {}
    if experts:
        for decision_id, entered_at, intent, size, confidence, rationale, outcome, load_id, line in c.execute(
            "select decision_id, toUnixTimestamp64Micro(entered_at), toString(intent), size, confidence, rationale, "
            "outcome, load_id, line from expert_decisions where expert in %(experts)s",
            {"experts": experts},
        ):
            content = (intent, size, confidence, rationale, outcome)
            found.setdefault(decision_id, []).append(Version(entered_at, content, load_id, line))
    return found


def _insert(c: Client, made: Plan, now: int, file: str, load_id: str) -> None:
    """One block, hence all rows or none."""
    rows = [
        (
            d.decision_id,
            d.expert,
            *d.instrument,
            _moment(d.decided_at),
            _moment(now if d.entered_at is None else d.entered_at),
            "clock" if d.entered_at is None else "file",
            d.intent,
            d.size,
            d.confidence,
            d.horizon,
            d.rationale,
            d.outcome,
            file,
            d.line,
            load_id,
        )
        for d in [*made.new, *made.corrections]
    ]
    if rows:
        c.execute(_INSERT, rows, settings={"insert_block_size": len(rows), "async_insert": 0})


def _require(c: Client, table: str) -> None:
    try:
        [(exists,)] = c.execute(f"exists table {table}")
    except driver_errors.ServerException as e:
        raise UserError(f"no table {table}: {str(e.message).split('Stack trace')[0].strip()}") from e
    if not exists:
        raise UserError(f"there is no {table} yet: run `make build`")


@contextmanager
def _lock() -> Iterator[None]:
    """One writer at a time on this machine: what is stored must not change between reading and writing it."""
    s = settings()
    s.data_dir.mkdir(parents=True, exist_ok=True)
    with (s.data_dir / f"{s.db_prefix}experts.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
