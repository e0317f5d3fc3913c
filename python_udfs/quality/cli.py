"""`marketprism quality`: what the public relations promise, checked, with pages to look at."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer
from rich.console import Console

from python_udfs import db
from python_udfs.quality import checkpoint


def quality_command(
    open_: Annotated[bool, typer.Option("--open", help="Open the pages in the browser.")] = False,
) -> None:
    """Check the public relations against their contracts with great-expectations, and write pages of it.

    Looks at the newest rows of each relation of seeds/quality_limits.csv. The result is a row of
    marketprism_serving.quality_runs; while the newest one failed, no model is promoted.
    Exit codes: 0 every expectation is met; 1 one is not.
    """
    out = Console(highlight=False, soft_wrap=True)
    with db.connect() as c:
        done = checkpoint.run(c)
    for message in done.failed:
        out.print(f"failed: {message}", markup=False)
    out.print(
        f"{done.expectations - len(done.failed)} of {done.expectations} expectations of "
        f"{len(done.relations)} relations are met; pages: {done.docs / 'index.html'}",
        markup=False,
    )
    if open_:
        webbrowser.open((done.docs / "index.html").as_uri())
    if not done.success:
        raise typer.Exit(1)
