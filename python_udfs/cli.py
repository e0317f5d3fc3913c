"""`marketprism`: every command of the project. `make` calls these; so does cron."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console

from python_udfs.dashboard.cli import dashboard_command
from python_udfs.dbt import dbt_command
from python_udfs.errors import UserError
from python_udfs.experts.cli import app as experts_app
from python_udfs.exporter.cli import alerts_command, exporter_command
from python_udfs.ingest.cli import app as ingest_app
from python_udfs.jobs.bench import bench_command
from python_udfs.jobs.candidates import refresh_candidates_command
from python_udfs.jobs.catalog import catalog_command
from python_udfs.jobs.demo import demo_command
from python_udfs.jobs.report import report_command
from python_udfs.jobs.udf import app as udf_app
from python_udfs.live.cli import app as live_app
from python_udfs.migrate import migrate_command
from python_udfs.operations.cli import archive_app, backup_app, job_app, repair_command
from python_udfs.quality.cli import quality_command
from python_udfs.scorer.cli import replay_command, score_command
from python_udfs.scorer.models_cli import app as models_app
from python_udfs.server import app as server_app
from python_udfs.training.cli import train_command

err = Console(stderr=True)


class _App(typer.Typer):
    """Prints what the user can mend as one message and exits with 1; a bug keeps its traceback."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except UserError as e:
            err.print(f"[bold red]error:[/] {e}", highlight=False, soft_wrap=True)
            sys.exit(1)


app = _App(
    help="MarketPrism feature store: ingest, migrate, build, train, score.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(server_app, name="server", help="Start, stop and look at the local ClickHouse server.")
app.add_typer(ingest_app, name="ingest", help="Load market data into the raw tables.")
app.add_typer(udf_app, name="udf", help="Functions that SQL may call.")
app.add_typer(experts_app, name="experts", help="Decisions of human experts, on one footing with the models.")
app.add_typer(models_app, name="models", help="Register models, roll them out and back.")
app.add_typer(job_app, name="job", help="Scheduled jobs: run one, list them, print crontab or systemd units.")
app.add_typer(archive_app, name="archive", help="Move old raw rows to the cold database.")
app.add_typer(backup_app, name="backup", help="Write the store to a folder, and bring it back.")
app.add_typer(live_app, name="live", help="Views instead of builds; recorded data as if it were now.")
app.command("migrate")(migrate_command)
app.command("repair")(repair_command)
app.command(
    "dbt",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(dbt_command)
app.command("demo")(demo_command)
app.command("train")(train_command)
app.command("score")(score_command)
app.command("replay")(replay_command)
app.command("report")(report_command)
app.command("catalog")(catalog_command)
app.command("quality")(quality_command)
app.command("exporter")(exporter_command)
app.command("alerts")(alerts_command)
app.command("dashboard")(dashboard_command)
app.command("bench")(bench_command)
app.command("refresh-candidates")(refresh_candidates_command)
