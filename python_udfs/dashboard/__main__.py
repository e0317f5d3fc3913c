"""`python -m python_udfs.dashboard`: the command alone, without importing the others."""

import typer

from python_udfs.dashboard.cli import dashboard_command

typer.run(dashboard_command)
