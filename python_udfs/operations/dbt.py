"""dbt in this process, with a target folder for each use: what it parsed is still there at the next call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_udfs.errors import UserError
from python_udfs.settings import REPOSITORY, settings


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one model or test; relation: its table's name."""

    name: str
    relation: str
    status: str
    message: str


def run_dbt(
    *words: str, use: str, variables: Mapping[str, Any] | None = None, profiles: Path = REPOSITORY
) -> list[Result]:
    """Runs dbt and returns a result for each node that it ran.

    Args:
        use: names the target folder, `<data_dir>/dbt/<prefix><use>`; its log is there, too.
        variables: dbt's vars. None: those of the project; dbt parses anew where they differ from the last call's.
        profiles: the folder of profiles.yml.

    Raises:
        UserError: dbt or a node failed; the message names the first.
    """
    # only here: every other command would wait for dbt
    from dbt.cli.main import dbtRunner

    own = settings().data_dir / "dbt" / f"{settings().db_prefix}{use}"
    places = [
        f"--project-dir={REPOSITORY}",
        f"--profiles-dir={profiles}",
        f"--target-path={own}",
        f"--log-path={own}",
    ]
    given = ["--vars", json.dumps(dict(variables))] if variables else []
    done = dbtRunner().invoke([*words, "--quiet", *places, *given])
    results = [
        Result(r.node.name, r.node.alias, str(r.status), str(r.message or "").split("Stack trace")[0].strip())
        for r in getattr(done.result, "results", [])
    ]
    if not done.success:
        failed = [f"{r.name}: {r.message}" for r in results if r.status in ("error", "fail", "runtime error")]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(
            f"dbt {' '.join(words)} failed: {failed[0] if failed else done.exception}{more}. "
            f"Log: {own / 'dbt.log'}. Was `make build` run once?"
        )
    return results
