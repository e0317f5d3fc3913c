"""`marketprism dashboard`."""

from __future__ import annotations

import socket
from typing import Annotated

import typer
from rich.console import Console

from python_udfs.errors import UserError

DEFAULT_PORT = 8765


def dashboard_command(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where to listen, on this machine only.")
    ] = DEFAULT_PORT,
    every_s: Annotated[
        float,
        typer.Option(min=0.5, help="Seconds between two looks at the store, for all open pages together."),
    ] = 5,
) -> None:
    """Show instruments, health, features, scores, drift, roll-out and jobs in the browser, until interrupted.

    Read only, on 127.0.0.1. From another machine: ssh -L 8765:127.0.0.1:8765 HOST.
    """
    import uvicorn

    from python_udfs.dashboard.app import create_app

    with socket.socket() as probe:  # uvicorn would say it in a log line and exit
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as e:
            raise UserError(f"cannot listen on 127.0.0.1:{port}: {e.strerror}. Give another --port") from e
    Console().print(f"http://127.0.0.1:{port}/", highlight=False)
    uvicorn.run(create_app(every_s), host="127.0.0.1", port=port, log_level="warning")
