"""`marketprism ingest`: load files, look at loads, look at what was refused."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.ingest.detect import detect
from python_udfs.ingest.download import download_command
from python_udfs.ingest.generator import generate_command
from python_udfs.ingest.loader import load
from python_udfs.ingest.records import LoadResult, Reader
from python_udfs.settings import settings

MarketType = Literal["spot", "linear", "inverse", "option"]
OnBytes = Callable[[int, int], None]

app = typer.Typer(no_args_is_help=True)
app.command("download")(download_command)
app.command("generate")(generate_command)


@app.command()
def files(
    paths: Annotated[list[Path], typer.Argument(exists=True, readable=True, help="files and folders")],
    again: Annotated[
        bool, typer.Option("--again", help="read files that were loaded before: after instruments were added")
    ] = False,
    market: Annotated[
        MarketType | None, typer.Option(help="of files that do not say it by name or folder")
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="read CSV and Parquet through this mapping (YAML)"),
    ] = None,
) -> None:
    """Load files into the raw tables. Loading twice changes nothing.

    Exit status 1 when a file cannot be loaded; the others are loaded all the same.
    """
    out, err = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    with db.connect(settings().database("hot")):
        pass  # no server: say so once, not for every file
    found = detect(paths, market_type=market, mapping=mapping)
    errors = list(found.errors)
    results: list[LoadResult] = []
    for path in found.unknown:
        err.print(f"not recognised: {escape(str(path))}", highlight=False)
    with _bar(err) as start:
        for reader in found.readers:
            label = _label([str(p) for p in reader.paths])
            try:
                result = load(reader, again=again, progress=start(reader, label))
            except UserError as e:
                errors.append(e)
                continue
            results.append(result)
            if not err.is_terminal:
                err.print(escape(f"{label}: {_one_line(result)}"), highlight=False)
    if results:
        _print_summary(out, results)
    if not results and not errors:
        errors.append(UserError("nothing to load: no file in there is recognised"))
    for error in errors:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
    if errors:
        raise typer.Exit(1)


@app.command()
def status(
    limit: Annotated[int, typer.Option(min=1, help="how many loads")] = 20,
) -> None:
    """Show the latest loads."""
    with db.connect(settings().database("hot")) as c:
        loads = db.rows(
            c,
            "select finished_at, files, data_source, rows_loaded, rows_duplicate, rows_rejected "
            f"from loads final order by finished_at desc limit {limit}",
        )
    table = Table("finished (UTC)", "source", title="loads")
    for name in ("files", "loaded", "duplicates", "quarantined"):
        table.add_column(name, overflow="fold")
    for row in loads:
        table.add_row(
            f"{row['finished_at']:%Y-%m-%d %H:%M:%S}",
            escape(row["data_source"]),
            escape(_label(row["files"])),
            *(_counts(row[name]) for name in ("rows_loaded", "rows_duplicate", "rows_rejected")),
        )
    Console().print(table if loads else "nothing was loaded yet")


@app.command()
def quarantine(
    limit: Annotated[int, typer.Option(min=1, help="how many reasons")] = 20,
) -> None:
    """Show why lines were refused: how many, and an example of each reason."""
    with db.connect(settings().database("hot")) as c:
        reasons = db.rows(
            c,
            "select reason_code, kind, count() as lines, "
            "argMin(tuple(file, line, field, reason), tuple(created_at, file, line)) as example "
            "from quarantine final group by reason_code, kind order by lines desc, reason_code, kind "
            f"limit {limit}",
        )
    table = Table("reason", "kind", title="quarantine")
    table.add_column("lines", justify="right")
    table.add_column("example", overflow="fold")
    for row in reasons:
        file, line, field, reason = row["example"]
        place = f"{Path(file).name}:{line}" + (f" [{field}]" if field else "")
        table.add_row(
            escape(row["reason_code"]), row["kind"], f"{row['lines']:,}", escape(f"{place}: {reason[:200]}")
        )
    Console().print(table if reasons else "no line was refused")


@contextmanager
def _bar(err: Console) -> Iterator[Callable[[Reader, str], OnBytes | None]]:
    """What starts a load's progress bar, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _reader, _label: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:

        def start(reader: Reader, label: str) -> OnBytes:
            task = bar.add_task(label, total=sum(p.stat().st_size for p in reader.paths if p.is_file()))
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield start


def _label(paths: list[str]) -> str:
    """A load's name: its first file, or the folder of a generated market."""
    first = Path(paths[0]).name
    if first == "manifest.json":
        return Path(paths[0]).parent.name
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"


def _one_line(result: LoadResult) -> str:
    if result.skipped:
        return "loaded before, skipped (--again reads it once more)"
    return (
        f"{sum(result.rows.values()):,} rows, {sum(result.duplicates.values()):,} duplicates, "
        f"{sum(result.rejected.values()):,} quarantined, {result.seconds:.1f} s"
    )


def _counts(by_kind: dict[str, int]) -> str:
    return "\n".join(f"{kind} {n:,}" for kind, n in sorted(by_kind.items()) if n) or "-"


def _print_summary(out: Console, results: list[LoadResult]) -> None:
    """One line a kind and one for all. Seconds are those of whole loads: kinds are loaded together."""
    rows: Counter[str] = Counter()
    duplicates: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for result in results:
        rows.update(result.rows)
        duplicates.update(result.duplicates)
        rejected.update(result.rejected)
    seconds = sum(result.seconds for result in results)
    table = Table("kind")
    for name in ("loaded", "duplicates", "quarantined", "seconds", "rows/s"):
        table.add_column(name, justify="right")
    for kind in sorted({*rows, *duplicates, *rejected}):
        table.add_row(kind, f"{rows[kind]:,}", f"{duplicates[kind]:,}", f"{rejected[kind]:,}", "", "")
    read = rows.total() + duplicates.total()
    table.add_section()
    table.add_row(
        "all",
        f"{rows.total():,}",
        f"{duplicates.total():,}",
        f"{rejected.total():,}",
        f"{seconds:,.1f}",
        f"{read / seconds:,.0f}" if seconds else "",
    )
    if not all(result.skipped for result in results):
        out.print(table)
    if skipped := sum(result.skipped for result in results):
        out.print(f"{skipped} of {len(results)} loads skipped: loaded before (--again reads them once more)")
    for result in results:
        for name, value in result.notes.items():
            out.print(escape(f"{_label(result.files)}: {name}: {value}"), highlight=False)
    if rejected.total():
        out.print("why lines were refused: marketprism ingest quarantine")
