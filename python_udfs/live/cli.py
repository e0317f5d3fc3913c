"""`marketprism live`: views instead of builds, recorded data as if it were now."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.ingest.detect import detect
from python_udfs.live import views
from python_udfs.live.replay import Step, replay
from python_udfs.settings import settings

_STOP_WAIT_S = 10
app = typer.Typer(no_args_is_help=True)
Models = Annotated[
    views.Chain,
    typer.Option("--models", help="v1: feature_vector v1; v2: versions 1 and 2, and bucket_labels."),
]
Vars = Annotated[str, typer.Option("--vars", help="dbt vars that the tables were built with, as JSON.")]


@app.command("replay")
def replay_command(
    data: Annotated[list[Path], typer.Argument(exists=True, readable=True, help="Files and folders.")],
    speed: Annotated[float, typer.Option(min=0, help="Market seconds a wall second; 0: no waiting.")] = 1,
    step: Annotated[
        float,
        typer.Option(min=0, help="Market seconds a load; 0: one wall second's, or a minute at speed 0."),
    ] = 0,
) -> None:
    """Load recorded or generated data in the order in which it became known, timestamps as recorded.

    Ctrl-C ends it after the load under way; run again, it skips what is loaded. Exit codes: 0 all is loaded, 1 failed,
    130 stopped before the end.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    with db.connect(settings().database("hot")):
        pass  # no server: say so before the files are read
    found = detect(data)
    for path in found.unknown:
        err.print(f"not recognised: {path}", markup=False)
    if found.errors:
        raise found.errors[0]
    rows = 0
    with _until_stopped() as stop, _bar(err) as show:

        def on_step(step: Step) -> None:
            nonlocal rows
            rows += sum(step.result.rows.values())
            show(step.done, f"{step.at:%Y-%m-%d %H:%M:%S} {rows:,} rows, {step.behind_s:.1f} s behind")

        complete = replay(
            found.readers,
            speed,
            step_s=step or None,
            on_step=on_step,
            on_read=lambda n: show(0.0, f"reading: {n:,} rows"),
            stop=stop,
        )
    err.print(f"{rows:,} rows loaded" + ("" if complete else ", stopped: run it again to go on"))
    if not complete:
        raise typer.Exit(130)


@app.command()
def start(models: Models = "v1", variables: Vars = "{}") -> None:
    """Make the live views, which keep the tables up to date from now on. `dbt build` refuses until `live stop`."""
    began = time.monotonic()
    n = views.start(models, _variables(variables))
    print(f"{n} live views in {time.monotonic() - began:.1f} s")


@app.command()
def stop() -> None:
    """Drop the live views: `dbt build` fills the tables again. What the views appended stays."""
    print(f"{views.stop()} live views dropped")


@app.command("status")
def status_command() -> None:
    """Show how the live views are. Exit codes: 0 they run, 1 some fail or stand still, 3 there are none."""
    with db.connect(settings().database("features")) as c:
        found = views.status(c)
        print(_line(c, found))
    for name, exception in found.failing.items():
        print(f"{name}: {exception}")
    if not found.views:
        raise typer.Exit(3)
    if found.failing or found.stalled:
        raise typer.Exit(1)


@app.command()
def run(
    models: Models = "v1",
    variables: Vars = "{}",
    model: Annotated[str, typer.Option(help="The model that scores; empty: none does.")] = "",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two status lines.")] = 5,
    put_back: Annotated[
        bool, typer.Option("--stop/--keep", help="Drop the views at the end, or leave them to the server.")
    ] = True,
) -> None:
    """Make the live views, score what they make and say how they are, until Ctrl-C or SIGTERM."""
    n = views.start(models, _variables(variables))
    print(f"{n} live views", flush=True)
    scorer: subprocess.Popen[bytes] | None = None
    with _until_stopped() as stopped:
        try:
            if model:
                # recorded data is scored as of its own end, or every row would be stale
                command = [
                    str(Path(sys.executable).parent / "marketprism"),
                    "score",
                    "--loop",
                    "--now",
                    "latest",
                ]
                scorer = subprocess.Popen([*command, "--model", model])
            while not stopped.wait(every):
                _watch()
                if scorer is not None and (code := scorer.poll()) is not None:
                    raise UserError(f"the scorer ended (exit {code}); see its message above")
        finally:
            if scorer is not None and scorer.poll() is None:
                scorer.terminate()
                try:
                    scorer.wait(_STOP_WAIT_S)
                except subprocess.TimeoutExpired:
                    scorer.kill()
            if put_back:
                print(f"{views.stop()} live views dropped")


def _watch() -> None:
    """One line; a pass that was lost, as by a restart of the server, is begun anew."""
    try:
        with db.connect(settings().database("features")) as c:
            found = views.status(c)
            print(_line(c, found), flush=True)
            for name, exception in found.failing.items():
                print(f"{name}: {exception}", flush=True)
            if found.stalled:
                print("the live views stood still: a pass is begun", flush=True)
                views.begin_pass(c)
    except (UserError, driver_errors.Error, EOFError, OSError) as e:
        print(f"no answer, trying again: {e}", flush=True)


def _line(c: Client, found: views.Status) -> str:
    """The state of the views and the freshness of what they make, in one line."""
    parts = [f"{datetime.now(UTC):%H:%M:%S}", f"{found.views} views", f"{len(found.failing)} failing"]
    if found.pass_s is not None:
        parts.append(f"a pass each {found.pass_s:.2f} s")
    [(exists,)] = c.execute("exists table freshness")
    if exists:
        rows = c.execute("select feature_vector, p50_s, p99_s from freshness where symbol = '' order by 1")
        parts += [f"{name} {p50:.2f} s, p99 {p99:.2f} s" for name, p50, p99 in rows]
    return ", ".join(parts)


def _variables(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as e:
        raise UserError(f"--vars {text!r} is no JSON: {e}") from e
    if not isinstance(found, dict):
        raise UserError(f"--vars {text!r}: write an object such as " + '{"t_target_s": 10}')
    return found


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, instead of ending the process."""
    event = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in numbers]
    try:
        yield event
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _bar(err: Console) -> Iterator[Any]:
    """How far a replay is: a bar on a terminal, else nothing."""
    if not err.is_terminal:
        yield lambda _done, _text: None
        return
    columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda done, text: bar.update(task, completed=done, description=text)
