"""`python -m python_udfs.exporter`: the command alone, without importing the others."""

import typer

from python_udfs.exporter.cli import exporter_command

typer.run(exporter_command)
