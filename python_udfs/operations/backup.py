"""The whole store in a folder, and back: ClickHouse's BACKUP and RESTORE, with counts and checksums beside it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.migrate import FOLDERS
from python_udfs.operations.checksums import checksums, full
from python_udfs.operations.locks import BUILD, held
from python_udfs.settings import Layer, settings

_LAYERS: Final[tuple[Layer, ...]] = tuple(FOLDERS)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a table must hold once it is back: rows and checksum as merged; None where it was written to meanwhile."""

    layer: str
    table: str
    rows: int
    checksum: int | None


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was written or brought back."""

    path: Path
    tables: tuple[Contents, ...]
    seconds: float

    @property
    def rows(self) -> int:
        """Over all tables."""
        return sum(t.rows for t in self.tables)

    @property
    def changing(self) -> list[str]:
        """Tables without a checksum."""
        return [f"{t.layer}.{t.table}" for t in self.tables if t.checksum is None]


def create(path: str) -> Backup:
    """Writes the four databases to a new folder, and `<path>.json` beside it with what they hold.

    No build runs meanwhile. A table that somebody else writes to gets no checksum and is named.

    Raises:
        BusyError: a build is under way.
        UserError: the folder is there already, or the server may not write it.
    """
    began = time.monotonic()
    place, manifest = _places(path)
    if manifest.exists():
        raise UserError(f"{manifest} is there: choose another name, or remove that backup")
    s = settings()
    with held(BUILD, "backup"), db.connect() as c:
        before = _contents(c)
        databases = ", ".join(f"database {db.names([s.database(layer)])}" for layer in _LAYERS)
        _run(c, f"backup {databases} to File({db.quote(str(place))})")
        after = {(t.layer, t.table): t for t in _contents(c)}
    same = tuple(
        t if after.get((t.layer, t.table)) == t else Contents(t.layer, t.table, t.rows, None) for t in before
    )
    record = {
        "made_at": datetime.now(UTC).isoformat(),
        "prefix": s.db_prefix,
        "tables": [asdict(t) for t in same],
    }
    manifest.parent.mkdir(parents=True, exist_ok=True)
    temporary = manifest.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(manifest)
    return Backup(place, same, time.monotonic() - began)


def restore(path: str, *, force: bool = False) -> Backup:
    """Brings a backup into the databases of the current prefix, then compares every table with the manifest.

    Args:
        force: drop what the store holds; without it a store that is not empty is refused.

    Raises:
        BusyError: a build is under way.
        UserError: no such backup; the store is not empty; or what came back is not what was written.
    """
    began = time.monotonic()
    place, manifest = _places(path)
    try:
        record = json.loads(manifest.read_text())
    except FileNotFoundError as e:
        raise UserError(
            f"{manifest} is not there: a backup is complete once it is, so {place} is none"
        ) from e
    wanted = tuple(Contents(**t) for t in record["tables"])
    s = settings()
    with held(BUILD, "restore"), db.connect() as c:
        there = [f"{t.layer}.{t.table}" for t in _contents(c) if t.rows and t.table != "schema_versions"]
        if there and not force:
            more = f" and {len(there) - 3} more" if len(there) > 3 else ""
            raise UserError(
                f"the store is not empty ({', '.join(there[:3])}{more}): --force drops all of it first"
            )
        for layer in _LAYERS:
            c.execute(f"drop database if exists {db.names([s.database(layer)])} sync")
        pairs = ", ".join(
            f"database {db.names([record['prefix'] + 'marketprism_' + layer])} as {db.names([s.database(layer)])}"
            for layer in _LAYERS
        )
        _run(c, f"restore {pairs} from File({db.quote(str(place))})")
        found = {(t.layer, t.table): t for t in _contents(c)}
    wrong = [_difference(t, found.get((t.layer, t.table))) for t in wanted]
    if problems := [w for w in wrong if w]:
        raise UserError(
            f"{place}: restored, but not as it was written: {'; '.join(problems)}. Do not use this store"
        )
    return Backup(place, wanted, time.monotonic() - began)


def _difference(wanted: Contents, found: Contents | None) -> str:
    name = f"{wanted.layer}.{wanted.table}"
    if found is None:
        return f"{name} is missing"
    if (
        wanted.checksum is None
    ):  # written to meanwhile: there is no telling which of its rows are in the backup
        return ""
    if found.rows != wanted.rows:
        return f"{name} has {found.rows} rows, not {wanted.rows}"
    return "" if found.checksum == wanted.checksum else f"{name} has other rows than it had"


def _contents(c: Client) -> list[Contents]:
    """Every table with rows of its own, as merged. Views hold none."""
    s = settings()
    found = []
    for layer in _LAYERS:
        database = s.database(layer)
        tables = c.execute(
            "select name, engine from system.tables where database = %(d)s and engine like '%%MergeTree' order by name",
            {"d": database},
        )
        for table, engine in tables:
            rows, checksum = checksums(c, full(database, table), "1", engine=engine).get("1", (0, 0))
            found.append(Contents(layer, table, rows, checksum))
    return found


def _places(path: str) -> tuple[Path, Path]:
    """The backup's folder as the server knows it, and its manifest here."""
    s = settings()
    place = s.backups / path
    if s.target == "local" and not place.resolve().is_relative_to(s.backups):
        raise UserError(
            f"{place} is not in {s.backups}, the only place that the local server may use for backups: set "
            "MARKETPRISM_BACKUP_DIR to a folder that holds it and start the server anew"
        )
    beside = place if s.target == "local" else s.backups / place.name
    return place, beside.with_name(f"{beside.name}.json")


def _run(c: Client, sql: str) -> None:
    try:
        c.execute(sql)
    except driver_errors.ServerException as e:
        reason = str(e.message).split("Stack trace")[0].strip()
        raise UserError(
            f"ClickHouse refuses `{sql.split(' ', 1)[0]}`: {reason}. A server of yours needs `backups.allowed_path` "
            "in its configuration; the local one has it after a restart"
        ) from e
