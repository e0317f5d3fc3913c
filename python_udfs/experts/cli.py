"""`marketprism experts`: enter, import, list, score and export the decisions of human experts."""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.experts import store, synthetic
from python_udfs.experts.records import Decision, parse, show_horizon
from python_udfs.settings import settings

app = typer.Typer(no_args_is_help=True)
NoBuild = Annotated[
    bool, typer.Option("--no-build", help="Take the tables as they are; do not run dbt first.")
]


def _console(*, stderr: bool = False) -> Console:
    # a file or a pipe has no width of its own
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


@app.command("add")
def add_command(
    *,
    expert: Annotated[str, typer.Option(help="Who decided.")],
    instrument: Annotated[str, typer.Option(help="exchange:market_type:symbol")],
    intent: Annotated[str, typer.Option(help="buy, sell or hold")],
    horizon: Annotated[str, typer.Option(help="A label's horizon: `30 s`, `3 buckets`.")],
    rationale: Annotated[str, typer.Option(help="Why, in your words.")],
    decided_at: Annotated[str, typer.Option(help="ISO 8601 with a zone. Default: now.")] = "",
    size: Annotated[str, typer.Option(help="Base coin, or contracts for inverse.")] = "",
    confidence: Annotated[str, typer.Option(help="0 to 1")] = "",
    outcome: Annotated[str, typer.Option(help="What came of it.")] = "",
) -> None:
    """Enter one decision; the same one again (expert, instrument, time, horizon) corrects it."""
    now = datetime.now(UTC)
    parts = instrument.split(":")
    if len(parts) != 3:
        raise UserError(f"--instrument {instrument!r}: expected exchange:market_type:symbol")
    cells = {
        "expert": expert,
        **dict(zip(("exchange", "market_type", "symbol"), parts, strict=True)),
        "decided_at": decided_at or now.isoformat(),
        "intent": intent,
        "horizon": horizon,
        "rationale": rationale,
        "size": size,
        "confidence": confidence,
        "outcome": outcome,
    }
    rules = store.rules(now)
    found = parse(cells, rules)
    if not isinstance(found, Decision):
        raise UserError("; ".join(f"{field}: {reason}" for field, reason in found))
    made = store.add(found, rules.now)
    if made.bad:
        raise UserError(made.bad[0].reason)
    done = "entered" if made.new else "corrected" if made.corrections else "unchanged"
    _console().print(f"{done}: {found.decision_id}", markup=False)


@app.command("import")
def import_command(
    files: Annotated[list[Path], typer.Argument(help="CSV files, UTF-8, with a header.")],
    *,
    quarantine: Annotated[
        bool,
        typer.Option("--quarantine", help="Load the good lines; put the bad ones into the quarantine table."),
    ] = False,
) -> None:
    """Load decisions from CSV files: each file whole, or not at all.

    Columns: expert, exchange, market_type, symbol, decided_at, intent, horizon, rationale; optional: size, confidence,
    outcome, entered_at. Times need a zone. Without entered_at a decision counts as written down now: in hindsight, if
    its horizon is over. Exit codes: 0 loaded (with --quarantine also without bad lines); 1 a file was not.
    """
    out, err = _console(), _console(stderr=True)
    failed = 0
    for path in files:
        try:
            made = store.import_file(path, quarantine=quarantine)
        except UserError as e:
            err.print(f"error: {e}", markup=False)
            failed += 1
            continue
        for bad in made.bad:
            field = f" [{bad.field}]" if bad.field else ""
            err.print(f"{path}:{bad.line}{field}: {bad.reason}", markup=False)
        refused = len({bad.line for bad in made.bad})
        if refused and not quarantine:
            err.print(
                f"error: {path}: {refused} bad lines: nothing was loaded. Mend them, or load the others with "
                "--quarantine",
                markup=False,
            )
            failed += 1
            continue
        out.print(
            f"{path}: {len(made.new)} decisions, {len(made.corrections)} corrections, {made.unchanged} unchanged, "
            f"{made.duplicates} duplicate lines, {refused} quarantined",
            markup=False,
        )
    if failed:
        raise typer.Exit(1)


@app.command("list")
def list_command(
    expert: Annotated[str, typer.Option(help="One expert's only.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    *,
    history: Annotated[bool, typer.Option("--history", help="Every version, not only the last.")] = False,
) -> None:
    """Show the newest decisions."""
    with db.connect(settings().database("serving")) as c:
        last = "" if history else "limit 1 by decision_id"
        found = db.rows(
            c,
            f"""
            select * from (
                select *, count() over (partition by decision_id) as versions
                from expert_decisions
                order by entered_at desc, created_at desc
                {last}
            )
            where %(expert)s = '' or expert = %(expert)s
            order by decided_at desc, decision_id, entered_at desc
            limit %(limit)s
            """,
            {"expert": expert, "limit": limit},
        )
    table = Table("decided (UTC)", "entered (UTC)", "expert", "instrument", "intent", "horizon", "versions")
    table.add_column("rationale", overflow="ellipsis", no_wrap=True, max_width=40)
    for row in found:
        table.add_row(
            *(f"{row[name]:%Y-%m-%d %H:%M:%S}" for name in ("decided_at", "entered_at")),
            _plain(row["expert"]),
            _plain(":".join(row[name] for name in ("exchange", "market_type", "symbol"))),
            row["intent"],
            show_horizon(row["horizon"]),
            str(row["versions"]),
            _plain(" ".join(row["rationale"].split())),
        )
    _console().print(table if found else "no decisions yet")


@app.command("score")
def score_command(
    *,
    hindsight: Annotated[
        bool, typer.Option("--hindsight", help="Count decisions entered once their label was known, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    no_build: NoBuild = False,
) -> None:
    """Score the experts on the labels of the models."""
    if not no_build:
        store.build()
    with db.connect(settings().database("features")) as c:
        found = store.summary(c, hindsight=hindsight)
    if as_json:
        for row in found:
            typer.echo(orjson.dumps(row))
        return
    table = Table("expert", "horizon")
    for heading in (
        "decisions", "hindsight", "scored", "hit rate", "base rate", "IC", "trades", "bps a trade", "net bps", "± s.e.",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            _plain(row["expert"]),
            show_horizon(row["horizon"]),
            *(str(row[name]) for name in ("decisions", "hindsight_decisions", "scored")),
            *(
                _number(row[name], 1, "+.3f" if name == "ic" else ".3f")
                for name in ("hit_rate", "base_rate", "ic")
            ),
            str(row["trades"]),
            *(
                _number(row[name], 1e4, "+.2f" if name != "net_return_stderr" else ".2f")
                for name in ("mean_signed_return", "mean_net_return", "net_return_stderr")
            ),
        )
    _console().print(table if found else "no decisions yet")


@app.command("export")
def export_command(
    out: Annotated[Path | None, typer.Option(help="A file. Default: standard output.")] = None,
    expert: Annotated[str, typer.Option(help="One expert's only.")] = "",
    *,
    no_build: NoBuild = False,
) -> None:
    """Write (state, decision, rationale, outcome) of each decision as JSON lines, in the order of time."""
    if not no_build:
        store.build()
    with db.connect(settings().database("features")) as c:
        lines = (
            orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
            for row in store.tuples(c, expert)
        )
        if out is None:
            try:
                for line in lines:
                    sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        try:
            with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
                try:
                    count = sum(bool(file.write(line)) for line in lines)
                    Path(file.name).replace(out)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as e:
            raise UserError(f"{out} cannot be written: {e.strerror}") from e
    _console(stderr=True).print(f"{out}: {count} decisions", markup=False)


@app.command("synthetic")
def synthetic_command(
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    seed: Annotated[int, typer.Option(help="The same seed and store, the same file.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many decisions at most.")] = 400,
    horizon: Annotated[str, typer.Option(help="A label's horizon: `10 s`, `3 buckets`.")] = "10 s",
) -> None:
    """Write decisions of a made-up expert who reads the order flow: for the demo, never for a benchmark of people."""
    with db.connect(settings().database("features")) as c:
        cells = synthetic.synthetic_decisions(seed, client=c, count=count, horizon=horizon)
    synthetic.write_csv(out, cells)
    _console(stderr=True).print(f"{out}: {len(cells)} synthetic decisions", markup=False)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _number(value: Any, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)
