"""The product from its commands, with kill -9 in the middle."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_udfs.ingest.generator import GeneratedReader, tiny_market, write
from python_udfs.ingest.loader import load
from python_udfs.settings import REPOSITORY, Settings
from tests.support import APPENDED, dbt, table_hash

BIN = Path(sys.executable).parent
TABLES = (*APPENDED, "bucket_labels", "training_set")
CLOCK = '{"t_target_s": 5, "t_max_s": 10}'


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes around midnight: two days, two anchors."""
    folder = tmp_path_factory.mktemp("market") / "tiny"
    config = tiny_market()
    write(
        type(config)(
            **{**{f: getattr(config, f) for f in config.__slots__}, "start": config.start + 85 * 60 * 10**6}
        ),
        folder,
    )
    return folder


def _command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=REPOSITORY,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def own_server(free_ports, environment, tmp_path: Path) -> Iterator[Settings]:  # type: ignore[no-untyped-def]
    """A server that this test may kill."""
    from python_udfs.migrate import migrate
    from python_udfs.server import start, stop
    from python_udfs.settings import settings

    port, http_port = free_ports(2)
    with environment(
        port=str(port), http_port=str(http_port), target="local", data_dir=str(tmp_path), db_prefix="kill_"
    ):
        start()
        migrate()
        try:
            yield settings()
        finally:
            stop()


def _die(process: subprocess.Popen[bytes], after: float, pid: int | None) -> None:
    """kill -9 to the client and, with a pid, to the server, after so many seconds."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        if pid:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def test_kill_nine_in_the_middle_of_ingest_and_build_ends_in_the_same_rows(
    own_server: Settings, market: Path
) -> None:
    from python_udfs.server import start, status

    def run(*words: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        env = {
            **os.environ,
            "DBT_TARGET_PATH": str(own_server.data_dir / "target"),
            "DBT_LOG_PATH": str(own_server.data_dir),
        }
        return subprocess.Popen(
            [str(BIN / words[0]), *words[1:]], cwd=REPOSITORY, env=env, stdout=quiet, stderr=quiet
        )

    r = random.Random(3)
    ingest = ("marketprism", "ingest", "files", str(market))
    build = ("dbt", "run", "--vars", CLOCK)
    assert _command("dbt", "seed", DBT_TARGET_PATH=str(own_server.data_dir / "target")).returncode == 0
    for words, span in ((ingest, 4.0), (build, 9.0)):
        for attempt in range(3):
            server = status()
            assert server is not None
            kills_server = attempt != 1
            _die(run(*words), r.uniform(0.35, 1.0) * span, server.pid if kills_server else None)
            deadline = time.monotonic() + 20
            while kills_server and status() is not None and time.monotonic() < deadline:
                time.sleep(0.1)
            start()
        done = _command(*words, DBT_TARGET_PATH=str(own_server.data_dir / "target"))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    raw = {
        kind: table_hash(f"kill_marketprism_hot.{kind}", columns="* except (created_at)")
        for kind in ("trades", "orderbooks", "funding_rates")
    }
    built = {t: table_hash(t) for t in TABLES}
    assert raw["trades"]["n"] > 20_000, raw
    assert built["feature_vector_v1"]["n"] > 400, {t: h["n"] for t, h in built.items()}

    # One clean run, next door.
    with pytest.MonkeyPatch.context() as patch:
        from python_udfs.migrate import migrate
        from python_udfs.settings import settings

        patch.setenv("MARKETPRISM_DB_PREFIX", "clean_")
        settings.cache_clear()
        migrate()
        load(GeneratedReader(market))
        dbt("seed")
        dbt("run", t_target_s=5, t_max_s=10)
        assert {
            kind: table_hash(f"clean_marketprism_hot.{kind}", columns="* except (created_at)") for kind in raw
        } == raw
        assert {t: table_hash(t) for t in TABLES} == built
    settings.cache_clear()
