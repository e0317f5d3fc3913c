"""`marketprism exporter` and `marketprism alerts`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console

from python_udfs.errors import UserError
from python_udfs.exporter import alerts
from python_udfs.exporter.collector import StoreCollector

DEFAULT_PORT = 9464


def exporter_command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    budget_s: Annotated[
        float, typer.Option(min=0.1, help="Time for the queries of a scrape, together: seconds.")
    ] = 8,
) -> None:
    """Serve the store's health to Prometheus at http://HOST:PORT/metrics, until interrupted.

    Reads at each scrape, one query a relation. One that is not there yet gives marketprism_relation_missing 1; a store
    that does not answer gives marketprism_up 0. Configuration to copy: docs/operations.
    """
    registry = CollectorRegistry()
    registry.register(StoreCollector(budget_s))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as e:
        raise UserError(f"cannot listen on {host}:{port}: {e.strerror or e}. Give another --port") from e
    Console().print(f"http://{host}:{port}/metrics", highlight=False)
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    stop.wait()
    server.shutdown()
    thread.join()


def alerts_command(
    out: Annotated[Path, typer.Option(help="Where to.")] = alerts.FILE,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if it is not up to date.")
    ] = False,
) -> None:
    """Write the Prometheus alert rules of seeds/health_thresholds.csv."""
    text = alerts.render()
    if check:
        if not out.is_file() or out.read_text() != text:
            raise UserError(f"{out} is not what seeds/health_thresholds.csv says: run `marketprism alerts`")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    Console().print(str(out), highlight=False, soft_wrap=True)
