"""`make demo`: market data in; buckets, features, labels, a trained baseline, scores and a report out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.operations.cli import exit_75_if_busy
from python_udfs.operations.locks import BUILD, BUILD_WAIT_S, held
from python_udfs.settings import REPOSITORY, settings

console = Console()
# Short markets need short buckets to have rows enough to train on: a recording lasts minutes, the generated one hours.
RECORDED_CLOCK: dict[str, object] = {"t_target_s": 2, "t_max_s": 3}
GENERATED_CLOCK: dict[str, object] = {"t_target_s": 10, "t_max_s": 20}


def _run(*command: str) -> None:
    """One command of the project, as a user would type it; its output is the user's."""
    console.print(f"[dim]$ {' '.join(command)}[/]", soft_wrap=True)
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], cwd=REPOSITORY, check=False
    )
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed (exit {done.returncode}); see its message above")


def days_behind(since: datetime) -> dict[str, object]:
    """The range to rebuild, as dbt's vars: the days of the trades loaded since then, and the day after, whose first
    windows look back into them. Empty where an append will do: none lies behind a bucket that its instrument has.
    """
    layers = settings()
    with db.connect(layers.database("hot")) as c:
        if not c.execute(f"exists {layers.database('features')}.unified_buckets")[0][0]:
            return {}
        [(behind, first, last)] = c.execute(
            f"""
            select
                countIf(t.timestamp <= b.published_to),
                toString(min(toDate(t.timestamp))),
                toString(max(toDate(t.timestamp)) + 1)
            from trades as t
            left join (
                select exchange, market_type, symbol, max(bucket_ts_end) as published_to
                from {layers.database("features")}.unified_buckets
                group by exchange, market_type, symbol
            ) as b using (exchange, market_type, symbol)
            where t.created_at >= %(since)s
            """,
            {"since": since},
        )
    return {"start": first, "end": last} if behind else {}


def _build(clock: dict[str, object], since: datetime) -> None:
    """One build, with its data tests: an append, or a ranged rebuild where history was loaded.

    A build of a job is waited for; this one keeps those away.
    """
    with exit_75_if_busy(), held(BUILD, "demo", wait_s=BUILD_WAIT_S):
        variables = json.dumps({**clock, **days_behind(since)})
        _run("dbt", "build", "--quiet", "--exclude-resource-type", "unit_test", "--vars", variables)


def _counts() -> Table:
    """What is in the store now."""
    layers = settings()
    wanted = {
        "trades": ("hot", "trades"),
        "book states": ("hot", "orderbooks"),
        "quarantined lines": ("hot", "quarantine"),
        "buckets": ("features", "unified_buckets"),
        "feature rows": ("features", "feature_vector_v1"),
        "training rows": ("features", "training_set"),
        "predictions": ("serving", "predictions"),
    }
    table = Table(title="the store now")
    table.add_column("what")
    table.add_column("rows", justify="right")
    table.add_column("query it")
    with db.connect() as c:
        for what, (layer, name) in wanted.items():
            full = f"{layers.database(layer)}.{name}"  # type: ignore[arg-type]
            table.add_row(
                what, f"{c.execute(f'select count() from {full}')[0][0]:,}", f"select * from {full}"
            )
    return table


def demo_command(
    data: Annotated[
        Path | None, typer.Option(help="A folder or file of recorded market data; none: a generated market.")
    ] = None,
    minutes: Annotated[int, typer.Option(help="Length of the generated market.", min=20)] = 150,
) -> None:
    """The whole product once: ingest, build, train, score, report. Running it again changes nothing but the scores.

    Exit codes: 0 done; 1 a step failed; 75 another build was under way for half an hour.
    """
    if data is not None and not data.exists():
        raise UserError(f"{data} is not there; without DATA the demo generates a market")
    began = time.monotonic()
    layers = settings()
    steps: list[tuple[str, Callable[[], None]]] = []

    def step(name: str, *command: str) -> None:
        steps.append((name, lambda: _run(*command)))

    clock = GENERATED_CLOCK if data is None else RECORDED_CLOCK
    if data is None:
        folder = layers.data_dir / "generated" / f"demo-{minutes}m"
        step("generate", "marketprism", "ingest", "generate", "--out", str(folder), "--minutes", str(minutes))
        step("ingest", "marketprism", "ingest", "files", str(folder))
    else:
        step("ingest", "marketprism", "ingest", "files", str(data))
    since = datetime.now(UTC)
    steps.append(("build", lambda: _build(clock, since)))
    step("train", "marketprism", "train", "--model", "logistic", "--model", "lightgbm")
    # `latest`: recorded data is scored as of its own end, or every row would be stale
    step("score", "marketprism", "score", "--model", "logistic", "--now", "latest")
    step("score", "marketprism", "score", "--model", "lightgbm", "--now", "latest")
    step("report", "marketprism", "report")
    for number, (name, action) in enumerate(steps, 1):
        console.rule(f"[bold]{number}/{len(steps)} {name}", align="left")
        action()
    console.print(_counts())
    console.print(
        f"done in {time.monotonic() - began:.0f} s; the report is {layers.data_dir / 'report.html'}"
    )
    console.print(
        f"ClickHouse: native {layers.host}:{layers.port}, http://{layers.host}:{layers.http_port}/play"
    )
