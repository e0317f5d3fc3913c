"""dbt in this process, with the connection of the settings: what they read from files, profiles.yml cannot."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import typer

from python_udfs.errors import UserError
from python_udfs.settings import REPOSITORY, settings

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunnerResult


def invoke(words: Sequence[str], profiles: Path = REPOSITORY) -> dbtRunnerResult:
    """Runs dbt in this process, on this repository's project. profiles: the folder of profiles.yml."""
    import certifi
    from dbt.cli.main import dbtRunner

    folders = [f"--project-dir={REPOSITORY}", f"--profiles-dir={profiles}"]
    s = settings()
    with ExitStack() as for_now:
        if s.password_file:
            for_now.enter_context(patch.dict(os.environ, MARKETPRISM_PASSWORD=s.password))
        if s.ca_file:
            # dbt-clickhouse hands on no certificates to trust; clickhouse-driver takes certifi's where none are given
            certificates = str(s.ca_file)
            for_now.enter_context(patch.object(certifi, "where", lambda: certificates))
        return dbtRunner().invoke([*words, *folders])


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one model or test."""

    name: str
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class Model:
    """How dbt makes a relation. strategy: of an incremental one."""

    materialized: str
    strategy: str | None
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Dbt:
    """How dbt is called.

    Attributes:
        use: names the target folder, `<data_dir>/dbt/<prefix><use>`: what was parsed is still there at the next call, and
            the log.
        variables: dbt's vars; none: those of the project. dbt parses anew where they differ from the last call's.
        profiles: the folder of profiles.yml.
    """

    use: str
    variables: Mapping[str, Any] | None = None
    profiles: Path = REPOSITORY

    @property
    def folder(self) -> Path:
        """The target folder."""
        return settings().data_dir / "dbt" / f"{settings().db_prefix}{self.use}"

    def run(self, *words: str) -> list[Result]:
        """Runs dbt and returns a result for each node that it ran.

        Raises:
            UserError: dbt or a node failed; the message names the first.
        """
        done = self._invoke(*words)
        results = [
            Result(r.node.name, str(r.status), _short(str(r.message or "")))
            for r in getattr(done.result, "results", [])
        ]
        if not done.success:
            failed = [
                f"{r.name}: {r.message}" for r in results if r.status in ("error", "fail", "runtime error")
            ]
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise UserError(
                f"dbt {' '.join(words)} failed: {failed[0] if failed else done.exception}{more}. "
                f"Log: {self.folder / 'dbt.log'}. Was `make build` run once?"
            )
        return results

    def relations(self, *selection: str) -> dict[str, Model]:
        """The relations of the models that a selection means, and how each is made.

        Raises:
            UserError: dbt cannot read the project or the selection.
        """
        words = ["ls", "--resource-type=model", "--output=json"]
        with redirect_stdout(StringIO()):  # it prints them, quiet or not
            done = self._invoke(*words, *selection)
        if not done.success:
            raise UserError(f"dbt ls {' '.join(selection)} failed: {done.exception}")
        models = [json.loads(line) for line in done.result]
        return {
            m["alias"]: Model(
                m["config"]["materialized"],
                m["config"]["incremental_strategy"],
                frozenset(m["config"]["tags"]),
            )
            for m in models
        }

    def _invoke(self, *words: str) -> Any:
        places = [f"--target-path={self.folder}", f"--log-path={self.folder}"]
        given = ["--vars", json.dumps(dict(self.variables))] if self.variables else []
        return invoke([*words, "--quiet", *places, *given], self.profiles)


def _short(message: str) -> str:
    """What happened, without the server's stack and the whole query: the log has them."""
    said = message.split("Stack trace", maxsplit=1)[0].strip()
    return said if len(said) < 500 else f"{said[:500]} …"


def dbt_command(context: typer.Context) -> None:
    """Run dbt: `marketprism dbt build`. As `dbt` itself, but for a password or certificates that lie in files."""
    if not context.args:
        context.args.append("--help")
    result = invoke(context.args)
    if not result.success:
        sys.exit(2 if result.exception else 1)
