"""`marketprism report`: one self-contained HTML page of what is in the store and what the models make of it."""

from __future__ import annotations

import subprocess
import webbrowser
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.report import charts, queries, svg
from python_udfs.jobs.report.charts import Row, instrument_of, name_of
from python_udfs.jobs.report.queries import Instrument
from python_udfs.settings import REPOSITORY, settings
