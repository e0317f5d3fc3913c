"""Brings the raw tables and the tables that programs write up to date. dbt owns everything else.

Migrations are the numbered files under `migrations/`; what was applied is in each database's
`schema_versions` (kept by the package clickhouse-migrations). A file is applied first and recorded after, so
one that was killed halfway runs again: every statement in it has to bear that (`if not exists` and the like).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from clickhouse_migrations.clickhouse_cluster import ClickhouseCluster
from clickhouse_migrations.exceptions import MigrationException
from clickhouse_migrations.migration import Migration, MigrationStorage
from clickhouse_migrations.migrator import STATUS_MD5_MISMATCH, STATUS_PENDING, STATUS_UNKNOWN, Migrator
from rich.console import Console

from python_udfs import access, db
from python_udfs.cluster import LOCAL, VERSIONS_ENGINE, on_cluster
from python_udfs.errors import UserError
from python_udfs.ingest.records import COLUMNS
from python_udfs.settings import REPOSITORY, Layer, settings

MIGRATIONS = REPOSITORY / "migrations"
# Which folders make a database. The raw tables are the same in hot and cold.
FOLDERS: Final[dict[Layer, tuple[str, ...]]] = {
    "hot": ("raw", "hot"),
    "cold": ("raw", "cold"),
    "features": (),
    "serving": ("serving",),
}


def migrate(folder: Path = MIGRATIONS) -> dict[str, list[int]]:
    """Creates the four databases of the current prefix, applies what is pending, and sets the TTLs.

    Roles and limits are made where the server and the user allow it (`access.cannot_manage`).

    Calling it again changes nothing.

    Returns:
        Per database the versions that this call applied, in order.

    Raises:
        UserError: no ClickHouse, or it refuses; an applied file was edited or is gone.
    """
    s = settings()
    on = f' on cluster "{s.cluster}"' if s.cluster else ""
    cluster = ClickhouseCluster(
        migrations_table_engine=VERSIONS_ENGINE if s.cluster else None,
        db_host=s.host, db_port=str(s.port), db_user=s.user, db_password=s.password, secure=s.secure,
        verify=s.verify, ca_cert=s.ca_file and str(s.ca_file),
    )  # fmt: skip
    kept: dict[Layer, tuple[int, tuple[str, ...]]] = {
        "hot": (s.hot_ttl_days, tuple(COLUMNS)),
        "cold": (s.cold_ttl_days, tuple(COLUMNS)),
        "serving": (s.inputs_ttl_days, ("prediction_inputs",)),
    }
    applied = {}
    with db.connect() as c:
        for layer, folders in FOLDERS.items():
            database = s.database(layer)
            files = _files(folder, folders)
            try:
                c.execute(f"create database if not exists {db.names([database])}{on}")
                applied[database] = _apply(cluster, database, files) if files else []
                if layer in kept:
                    _set_ttl(c, database, *kept[layer])
                if layer == "serving" and (folder / "access").is_dir() and not access.cannot_manage(c):
                    cluster.migrations_table = "access_versions"
                    _apply(cluster, database, _files(folder, ("access",)))
            except driver_errors.ServerException as e:
                raise UserError(f"migrating {database}: ClickHouse refuses: {_first_line(e)}") from e
    return applied


def drop_all(*, force: bool = False) -> list[str]:
    """Drops the four databases of the current prefix, with everything in them. Returns their names.

    Raises:
        UserError: there is no prefix, so these are the real databases, and `force` was not given.
    """
    s = settings()
    databases = [s.database(layer) for layer in FOLDERS]
    if not s.db_prefix and not force:
        raise UserError(
            f"MARKETPRISM_DB_PREFIX is empty: this would drop {', '.join(databases)} with all their data. "
            "Use force if that is what you want"
        )
    on = f' on cluster "{s.cluster}"' if s.cluster else ""
    with db.connect() as c:
        for database in databases:
            c.execute(f"drop database if exists {db.names([database])}{on} sync")
        if not access.cannot_manage(c):
            for role in access.ROLES:
                c.execute(f"drop settings profile if exists {access.role(role, s.db_prefix)}{on}")
                c.execute(f"drop role if exists {access.role(role, s.db_prefix)}{on}")
    return databases


def _files(folder: Path, folders: tuple[str, ...]) -> dict[int, tuple[Path, Migration]]:
    """The migrations of one database, by version and in order."""
    found: dict[int, tuple[Path, Migration]] = {}
    for name in folders:
        storage = MigrationStorage(folder / name)
        try:
            migrations, file_names = storage.migrations(), storage.migration_filenames()
        except MigrationException as e:
            raise UserError(f"{folder / name}: {e}") from e
        for migration in migrations:
            path = folder / name / file_names[migration.version]
            if migration.version in found:
                raise UserError(
                    f"{found[migration.version][0]} and {path} have the same version {migration.version}: "
                    "give the newer one a free number"
                )
            found[migration.version] = path, migration
    return dict(sorted(found.items()))


def _apply(cluster: ClickhouseCluster, database: str, files: dict[int, tuple[Path, Migration]]) -> list[int]:
    """Applies the pending migrations, after seeing that the applied ones are those of the files."""
    migrations = [migration for _, migration in files.values()]
    with cluster.connection(database) as connection:
        name = settings().cluster
        if name:
            migrations = on_cluster(migrations, name)
        migrator = Migrator(
            connection,
            migrations_table=cluster.migrations_table,
            migrations_table_engine=cluster.migrations_table_engine,
        )
        migrator.init_schema(name or None)
        for row in migrator.migration_status(migrations):
            if row.state == STATUS_MD5_MISMATCH:
                raise UserError(
                    f"{files[row.version][0]} was edited after it was applied to {database}: put it back as "
                    "it was, and make the change in a new migration with a higher number"
                )
            if row.state == STATUS_UNKNOWN:
                raise UserError(
                    f"{database} has migration {row.version} applied, and there is no file of it here: this "
                    "checkout is older than the database. Update it, or put the file back"
                )
        try:
            variables = {"PREFIX": settings().db_prefix}
            done = migrator.apply_migration(migrations, multi_statement=True, variables=variables)
            return [m.version for m in done]
        except driver_errors.ServerException as e:
            status = migrator.migration_status(migrations)
            failed = next(row.version for row in status if row.state == STATUS_PENDING)
            raise UserError(f"{files[failed][0]} fails in {database}: {_first_line(e)}") from e


def _set_ttl(c: Client, database: str, days: int, tables: tuple[str, ...]) -> None:
    """Keeps rows `days` days after they were loaded; 0 for ever. Touches only tables that differ.

    A changed TTL makes ClickHouse rewrite the table's parts, so an unchanged one must not be set again.
    """
    expression = f"toDateTime(created_at) + toIntervalDay({days})" if days else None
    query = (
        "select name, engine_full from system.tables "
        "where database = %(database)s and name in %(tables)s and engine like '%%MergeTree'"
    )
    cluster = settings().cluster
    tables = (*tables, *(table + LOCAL for table in tables)) if cluster else tables
    on = f' on cluster "{cluster}"' if cluster else ""
    for table, engine in c.execute(query, {"database": database, "tables": tables}):
        found = re.search(r"\bTTL (.+?)(?: SETTINGS |$)", engine)
        if (found[1] if found else None) != expression:
            change = f"modify TTL {expression}" if expression else "remove TTL"
            c.execute(f"alter table {db.names([database])}.{db.names([table])}{on} {change}")


def _first_line(e: driver_errors.ServerException) -> str:
    return str(e.message).split("Stack trace")[0].strip()


def migrate_command(
    drop: Annotated[
        bool,
        typer.Option("--drop", help="First drop the databases of MARKETPRISM_DB_PREFIX and all in them."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Drop even without a prefix.")] = False,
) -> None:
    """Create the databases, apply pending migrations, and set how long rows are kept."""
    out = Console(highlight=False, soft_wrap=True)
    if drop:
        out.print(f"dropped {', '.join(drop_all(force=force))}")
    for database, versions in migrate().items():
        out.print(f"{database}: {f'applied {versions}' if versions else 'up to date'}", markup=False)
    with db.connect() as c:
        if settings().target == "server" and (reason := access.cannot_manage(c)):
            out.print(f"no roles were made: {reason}", markup=False)
