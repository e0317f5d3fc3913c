"""`marketprism models`: register models, and bring them into service and out of it.

Exit codes: 0 done, also if it was done already; 1 refused or failed; 75 not yet: too little data, or another command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
from clickhouse_driver import Client
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.scorer import deployment, registry
from python_udfs.scorer.deployment import BusyError, Deployment, GateError, Verdict
from python_udfs.scorer.registry import Registered
from python_udfs.settings import settings

NOT_YET: Final = 75  # EX_TEMPFAIL: try again later

app = typer.Typer(no_args_is_help=True)

_Model = Annotated[
    str, typer.Argument(metavar="NAME[:VERSION]", help="Default version: the last registered.")
]
_Reason = Annotated[str, typer.Option(help="Kept with the state.")]


@contextmanager
def _client() -> Iterator[Client]:
    """A client; what may be tried again later exits with 75."""
    try:
        with db.connect() as c:
            yield c
    except (BusyError, GateError) as e:
        if isinstance(e, GateError) and e.verdict == Verdict.FAIL:
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(str(e), markup=False)
        raise typer.Exit(NOT_YET) from e


def _out() -> Console:
    # a file or a pipe has no width of its own
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


@app.command("list")
def list_command() -> None:
    """Every registered model and its stage."""
    with _client() as c:
        models, states = registry.registered(c), deployment.history(c)
    table = Table()
    for heading in ("model", "type", "reads", "label", "IC", "log loss", "registered (UTC)", "stage"):
        table.add_column(heading)
    for m in models:
        ic, loss = m.card.pooled.ic, m.card.pooled.log_loss
        table.add_row(
            str(m.reference),
            m.card.type,
            m.reference.table,
            m.card.label,
            "" if ic is None else f"{ic:.4f}",
            f"{loss:.4f}",
            f"{m.at:%Y-%m-%d %H:%M}",
            _stage(m, [entry.deployment for entry in states]),
        )
    _out().print(table)


def _stage(model: Registered, states: list[Deployment]) -> str:
    """What a model is, or was, by the states (newest first): one fact, kept in one place."""
    now = states[0] if states else Deployment()
    here = [role for role in ("champion", "challenger", "baseline") if getattr(now, role) == model.reference]
    if here:
        return f"{' and '.join(here)}{f' ({now.share} %)' if 'challenger' in here else ''}"
    if not model.available:
        return "pruned"
    return "former" if any(model.reference in state.models for state in states) else "registered"


@app.command("show")
def show_command(model: _Model) -> None:
    """A model's card, files and who registered it, as JSON."""
    with _client() as c:
        found = registry.find(c, model)
    said = {"available": found.available, "who": found.who, "at": found.at, "files": found.files}
    typer.echo(orjson.dumps(said | {"card": found.card.model_dump(mode="json")}, option=orjson.OPT_INDENT_2))


@app.command("register")
def register_command(
    model: Annotated[
        str, typer.Argument(help="Name of a trained model, or a folder with model.onnx and card.json.")
    ],
) -> None:
    """Keep a trained model in the database. Doing it again changes nothing."""
    folder = settings().data_dir / "models" / model
    with _client() as c:
        done, new = registry.register(c, folder if folder.is_dir() else Path(model))
    _out().print(
        f"{done.reference}: {'registered' if new else 'was registered already'}, {len(done.files)} files"
    )


@app.command("promote")
def promote_command(
    model: _Model,
    *,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline", help="Make it the baseline: what serves where features are stale or missing."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Although the newest quality run failed; needs a --reason.")
    ] = False,
    reason: _Reason = "",
) -> None:
    """Make a model the challenger at 1 % of the instruments, or the champion where there is none.

    Refused while the newest run of `marketprism quality` failed. Where it has never run, nothing is refused for it.
    """
    if force and not reason.strip():
        raise typer.BadParameter("say why with --reason", param_hint="--force")
    waived, reason = ((deployment.quality_passes,), f"forced: {reason}") if force else ((), reason)
    with _client() as c:
        change = deployment.set_baseline if baseline else deployment.promote
        now, done = change(c, model, reason, waived=waived)
    _say(now, done=done)


@app.command("step")
def step_command(*, reason: _Reason = "") -> None:
    """Take the challenger from 1 to 5, 20 and 100 % and to champion, if `rollout_comparison` lets it pass.

    Exit codes: 0 done; 1 it fails; 75 too little data yet.
    """
    with _client() as c:
        now = deployment.step(c, reason)
    _say(now, done=True)


@app.command("rollback")
def rollback_command(
    *,
    again: Annotated[bool, typer.Option("--again", help="Go back further, right after a rollback.")] = False,
    reason: _Reason = "",
) -> None:
    """Restore the last champion state: the model and its feature version together. Asks no gate."""
    with _client() as c:
        now, done = deployment.rollback(c, reason, again=again)
    _say(now, done=done)


@app.command("history")
def history_command(limit: Annotated[int, typer.Option(min=1, help="States to show.")] = 20) -> None:
    """The last states and the commands that made them, the newest first."""
    with _client() as c:
        entries = deployment.history(c, limit)
    table = Table()
    headings = (
        "",
        "at (UTC)",
        "action",
        "champion",
        "challenger",
        "%",
        "baseline",
        "rollback to",
        "who",
        "reason",
    )
    for heading in headings:
        table.add_column(heading)
    for e in entries:
        d = e.deployment
        champion, challenger, baseline = (
            f"{m} ({m.table})" if m else "" for m in (d.champion, d.challenger, d.baseline)
        )
        models = (champion, challenger, str(d.share), baseline, str(d.rollback_to or ""))
        table.add_row(str(d.sequence), f"{e.at:%Y-%m-%d %H:%M:%S}", e.action, *models, e.who, e.reason)
    _out().print(table)


@app.command("prune")
def prune_command(
    *,
    keep: Annotated[
        int, typer.Option(min=1, help="Champions before the present one, and models of each name.")
    ] = 5,
    reason: _Reason = "",
) -> None:
    """Delete the files of old models, never those that a rollback needs. Cards stay."""
    with _client() as c:
        gone, files = deployment.prune(c, keep, reason)
    _out().print(f"pruned {', '.join(map(str, gone)) or 'no model'}, deleted {files} files")


def _say(d: Deployment, *, done: bool) -> None:
    parts = [f"champion {d.champion} on {d.champion.table}" if d.champion else "no champion"]
    parts += [f"challenger {d.challenger} on {d.challenger.table} at {d.share} %"] if d.challenger else []
    parts += [f"baseline {d.baseline}"] if d.baseline else []
    _out().print(
        f"deployment {d.sequence}{'' if done else ' stands, nothing changed'}: {', '.join(parts)}",
        markup=False,
    )
