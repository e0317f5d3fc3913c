"""Running dbt on a project folder: the repository's, or a copy with one text changed (a planted leak)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dbt.cli.main import dbtRunner
from dbt.node_types import NodeType

from python_udfs import db
from python_udfs.settings import REPOSITORY, settings

PROJECT: Final = ("dbt_project.yml", "profiles.yml", "dbt_project", "macros", "seeds", "tests/dbt")
SEEDS: Final = tuple(sorted(path.stem for path in (REPOSITORY / "seeds").glob("*.csv")))
# Small blocks: the bits of a result must not depend on where the engine happens to cut its input. With its
# own 65,409 rows they would do so unseen until a market is that long.
BLOCK_ROWS: Final = 997


def replace_once(text: str, old: str, new: str, where: object) -> str:
    """`text` with `old` replaced.

    Raises:
        AssertionError: `old` is not there exactly once: the code has moved on, and so must the caller.
    """
    assert text.count(old) == 1, f"{where}: expected once, found {text.count(old)} times: {old!r}"
    return text.replace(old, new)


def copy_project(folder: Path) -> Path:
    """The dbt project of the repository, copied into `folder`."""
    for name in PROJECT:
        source = REPOSITORY / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    return folder


def patch(project: Path, file: str, old: str, new: str) -> None:
    """Changes one text in one file of a copied project."""
    path = project / file
    path.write_text(replace_once(path.read_text(), old, new, file))


@dataclass(frozen=True, slots=True)
class Build:
    """A project, and the database that its models go to. Raw tables are those of the current store."""

    project: Path
    features: str
    target: Path

    def dbt(self, *words: str, may_fail: bool = False) -> list[Any]:
        """Runs dbt in this process and returns its results. may_fail: failing tests are results, too.

        Raises:
            AssertionError: a node failed; the message names it.
        """
        folders = [f"--project-dir={self.project}", f"--profiles-dir={self.target}"]
        outputs = [f"--target-path={self.target}", f"--log-path={self.target}"]
        done = dbtRunner().invoke([*words, "--quiet", *folders, *outputs])
        results = [
            r for r in getattr(done.result, "results", []) if r.node.resource_type != NodeType.Operation
        ]
        wrong = {"error", "runtime error"} | (set() if may_fail else {"fail"})
        failed = [f"{r.node.name}: {r.message}" for r in results if r.status in wrong]
        if failed or (done.exception and not results):
            raise AssertionError(f"dbt {' '.join(words)}: {failed or done.exception}")
        return results

    def manifest(self) -> dict[str, Any]:
        """What dbt knows about the project, after a run."""
        manifest: dict[str, Any] = json.loads((self.target / "manifest.json").read_text())
        return manifest


def building(project: Path, target: Path, instead_of: Build | None = None) -> Build:
    """A build of `project` in the features database of the current store.

    instead_of: what that built is dropped, all but its reference data; what it parsed is parsed again only where
        `project` differs: a whole parse takes 15 s.
    """
    build = Build(project, settings().database("features"), target)
    target.mkdir(parents=True, exist_ok=True)
    profile = (project / "profiles.yml").read_text()
    block = ("precise_float_parsing: 1", f"precise_float_parsing: 1\n        max_block_size: {BLOCK_ROWS}")
    (target / "profiles.yml").write_text(replace_once(profile, *block, "profiles.yml"))
    if instead_of:
        shutil.copy(instead_of.target / "partial_parse.msgpack", target)
        with db.connect(build.features) as c:
            made = c.execute(
                "select name, engine from system.tables where database = currentDatabase() and name not in %(seeds)s "
                "order by engine != 'MaterializedView'",
                {"seeds": SEEDS},
            )
            for name, engine in made:
                c.execute(f"drop {'view' if engine.endswith('View') else 'table'} {db.names([name])} sync")
    return build
