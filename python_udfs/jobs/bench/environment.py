"""The peers' own virtual environment, made from requirements-bench.lock: Feast needs pandas 2, the product has 3."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from python_udfs.errors import UserError
from python_udfs.settings import REPOSITORY

LOCK: Final = REPOSITORY / "requirements-bench.lock"
FOLDER: Final = REPOSITORY / ".venv-bench"
THREADS: Final = 2  # of every engine alike
_PEER: Final = Path(__file__).with_name("peer.py")


def peers_python(console: Console, folder: Path = FOLDER, lock: Path = LOCK) -> Path:
    """The interpreter that has the peers; makes its environment where there is none of this lock file.

    Raises:
        UserError: it cannot be made; the message has the end of what pip said.
    """
    python = folder / "bin" / "python"
    # written last: an environment that was left half made is made again
    marker = folder / "lock.sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if marker.exists() and marker.read_text() == digest:
        return python
    packages = sum("==" in line and not line.startswith((" ", "#")) for line in lock.read_text().splitlines())
    with console.status(f"{folder.name}: a new virtual environment") as status:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], folder)
        collected = 0
        command = [str(python), "-m", "pip", "install", "--require-hashes", "--requirement", str(lock)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY
        ) as pip:
            assert pip.stdout is not None
            said = []
            for line in pip.stdout:
                said.append(line)
                collected += line.startswith("Collecting ")
                status.update(
                    f"{folder.name}: installing"
                    if line.startswith("Installing")
                    else f"{folder.name}: package {collected} of about {packages}"
                )
        if pip.returncode:
            raise _failed(folder, "".join(said))
    marker.write_text(digest)
    return python


def run_peer(python: Path, *words: str) -> dict[str, Any]:
    """What peer.py measured, under that interpreter.

    Raises:
        UserError: it failed; the message has the end of what it said.
    """
    done = subprocess.run(
        [str(python), str(_PEER), *words, "--threads", str(THREADS)],
        capture_output=True,
        text=True,
        check=False,
        # polars reads its own when it is imported
        env={**os.environ, "POLARS_MAX_THREADS": str(THREADS), "PYTHONPATH": ""},
    )
    if done.returncode:
        raise UserError(f"peer {' '.join(words[:2])} failed:\n{done.stderr[-1500:].strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failed(folder, done.stdout + done.stderr)


def _failed(folder: Path, said: str) -> UserError:
    errors = [line for line in said.splitlines() if "ERROR" in line] or said.splitlines()
    return UserError(
        f"{folder.name} could not be made, so the peers are not measured: "
        + " / ".join(line.strip() for line in errors[-3:])
        + ". Is the package index reachable (pip config)? The next run tries again"
    )
