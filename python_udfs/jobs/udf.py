"""`marketprism udf`: the functions that SQL may call, and the configuration that a ClickHouse server needs for them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from python_udfs.functions.registry import functions, render_xml

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_command() -> None:
    """List the functions with what they take and give."""
    table = Table()
    for title in ("function", "arguments", "returns", "what it is"):
        table.add_column(title)
    for f in functions().values():
        arguments = "\n".join(f"{n} {t}" for n, t in f.arguments.items())
        returns = "\n".join(f"{n} {t}" for n, t in f.returns.items())
        table.add_row(f.name, arguments, returns, (f.call.__doc__ or "").strip().split("\n")[0])
    Console().print(table)


@app.command("xml")
def xml_command(
    python: Annotated[
        str, typer.Option(help="The interpreter on the server's machine that has this package installed.")
    ] = sys.executable,
) -> None:
    """Print the configuration for a ClickHouse server of your own.

    Save it as marketprism_function.xml beside its config.xml (or where its setting
    user_defined_executable_functions_config points to) and run `system reload functions`.
    The local server has it already.
    """
    typer.echo(render_xml(python), nl=False)
