"""`marketprism job`, `archive`, `backup` and `repair`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from python_udfs.errors import UserError
from python_udfs.operations import archive, backup, jobs, repair
from python_udfs.operations.locks import BUSY, BusyError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
job_app = typer.Typer(no_args_is_help=True)
archive_app = typer.Typer(no_args_is_help=True)
backup_app = typer.Typer(no_args_is_help=True)
EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file", help="File of MARKETPRISM_* settings and secrets, read before each job.", exists=True
    ),
]


@job_app.command("run")
def job_run(name: Annotated[str, typer.Argument(help="A job of `marketprism job list`.")]) -> None:
    """Run a job now: under its lock, with a log file and a row in job_runs.

    Exit codes: 0 done; 1 failed; 75 another run or build is under way, nothing was done.
    """
    done = jobs.run(name)
    (out if done.exit_code == 0 else err).print(f"{done.job}: {done.status}: {done.detail}", markup=False)
    if done.exit_code:
        err.print(f"log: {done.log}", markup=False)
        raise typer.Exit(done.exit_code)


@job_app.command("list")
def job_list() -> None:
    """Schedule, last run and its outcome."""
    last = jobs.last_runs()
    table = Table()
    for column in ("job", "schedule (UTC)", "does", "last run", "status", "detail"):
        table.add_column(column, overflow="fold")
    for job in jobs.JOBS:
        row = last.get(job.name)
        ran = (
            (f"{row['started_at']:%Y-%m-%d %H:%M:%S}", row["status"], row["detail"])
            if row
            else ("never", "", "")
        )
        table.add_row(job.name, job.cron or "on demand", job.does, *ran)
    out.print(table)


@job_app.command("crontab")
def job_crontab(env_file: EnvFile = None) -> None:
    """Print the crontab: `marketprism job crontab | crontab -`."""
    typer.echo(jobs.crontab(env_file), nl=False)


@job_app.command("systemd")
def job_systemd(
    output: Annotated[Path, typer.Option(help="Folder to write to, e.g. ~/.config/systemd/user.")],
    env_file: EnvFile = None,
) -> None:
    """Write a systemd service and timer for each scheduled job."""
    output.mkdir(parents=True, exist_ok=True)
    units = jobs.systemd_units(env_file)
    for file, text in units.items():
        (output / file).write_text(text)
    timers = " ".join(sorted(file for file in units if file.endswith(".timer")))
    out.print(f"{len(units)} files in {output}; then:", markup=False)
    out.print(f"systemctl daemon-reload && systemctl enable --now {timers}", markup=False)


@archive_app.command("run")
def archive_run() -> None:
    """Move raw days older than MARKETPRISM_ARCHIVE_AFTER_DAYS from hot to cold, each verified before it leaves hot.

    Exit codes: 0 done, also if there was nothing to do; 1 failed; 75 a build is under way.
    """
    with exit_75_if_busy():
        done = archive.run()
    for move in done.moves:
        out.print(f"{move.data_type} {move.range_start:%Y-%m-%d}: {move.rows_moved:,} rows", markup=False)
    out.print(str(done), markup=False)


@backup_app.command("create")
def backup_create(
    path: Annotated[
        str, typer.Argument(help="A folder that is not there yet; relative: to the backup folder.")
    ],
) -> None:
    """Write everything in the four databases to a folder, and beside it what it must hold (PATH.json)."""
    with exit_75_if_busy():
        done = backup.create(path)
    out.print(
        f"{done.path}: {len(done.tables)} tables, {done.rows:,} rows, {done.seconds:.1f} s", markup=False
    )
    if done.changing:
        out.print(
            f"written to meanwhile, so not verifiable by checksum: {', '.join(done.changing)}", markup=False
        )


@backup_app.command("restore")
def backup_restore(
    path: Annotated[str, typer.Argument(help="A folder that `backup create` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Drop what is in the store first.")] = False,
) -> None:
    """Bring a backup back into the databases of this store, and compare every table with what it must hold."""
    with exit_75_if_busy():
        done = backup.restore(path, force=force)
    out.print(
        f"{done.path}: {len(done.tables)} tables, {done.rows:,} rows restored and verified, {done.seconds:.1f} s",
        markup=False,
    )


def repair_command(
    start: Annotated[str, typer.Option(help="First day, UTC: 2024-08-08.")],
    end: Annotated[
        str, typer.Option(help="Last day, UTC. The day after is rebuilt, too: its first windows look back.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
    ] = False,
    select: Annotated[list[str] | None, typer.Option(help="dbt selection; none: every model.")] = None,
    variables: Annotated[
        str, typer.Option("--vars", help="The vars that the store was built with, as JSON or YAML.")
    ] = "",
) -> None:
    """Rebuild whole days from the raw rows next door, verify them, and exchange them for the published ones.

    Exit codes: 0 done; 1 failed, and nothing was changed unless the message says so; 75 a build is under way.
    """
    with exit_75_if_busy():
        done = repair.repair(
            _day(start), _day(end), dry_run=dry_run, select=select or (), variables=repair.parsed(variables)
        )
    table = Table(title="would change" if dry_run else "changed")
    for column in ("table", "day", "rows before", "rows after", "gone or other", "new or other"):
        table.add_column(column, justify="left" if column in ("table", "day") else "right")
    for change in done.changes:
        table.add_row(
            change.table,
            change.part,
            *(f"{n:,}" for n in (change.before, change.after, change.gone, change.new)),
        )
    out.print(table if done.changes else "every table is as a rebuild makes it")
    if done.left:
        out.print(
            f"left as they are (history, and what judges the present): {', '.join(done.left)}", markup=False
        )
    out.print(str(done), markup=False)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as e:
        raise UserError(f"{text!r} is no day: write it as 2024-08-08") from e


@contextmanager
def exit_75_if_busy() -> Iterator[None]:
    """Exit 75 where somebody else is at work."""
    try:
        yield
    except BusyError as e:
        err.print(str(e), markup=False)
        raise typer.Exit(BUSY) from e
