"""dbt with the connection of the settings: what they read from files, profiles.yml cannot."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from python_udfs.settings import REPOSITORY, settings

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunnerResult


def invoke(words: Sequence[str], profiles: Path = REPOSITORY) -> dbtRunnerResult:
    """Runs dbt in this process, on this repository's project. profiles: the folder of profiles.yml."""
    import certifi
    from dbt.cli.main import dbtRunner

    s = settings()
    if s.password_file:
        os.environ["MARKETPRISM_PASSWORD"] = s.password
    if s.ca_file:
        # dbt-clickhouse does not hand on certificates to trust; clickhouse-driver takes certifi's where none are given
        certificates = str(s.ca_file)
        certifi.where = lambda: certificates
    folders = [f"--project-dir={REPOSITORY}", f"--profiles-dir={profiles}"]
    return dbtRunner().invoke([*words, *folders])


def dbt_command(context: typer.Context) -> None:
    """Run dbt: `marketprism dbt build`. As `dbt` itself, but for a password or certificates that lie in files."""
    if not context.args:
        context.args.append("--help")
    result = invoke(context.args)
    if not result.success:
        sys.exit(2 if result.exception else 1)
