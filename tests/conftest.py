"""Fixtures for all tests. Only a test that asks for `server` or a store meets a ClickHouse."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from python_udfs.settings import REPOSITORY, Settings, settings


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets `MARKETPRISM_<NAME>` variables for a while. Settings are read anew inside, and anew after."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"MARKETPRISM_{name.upper()}", value)
        settings.cache_clear()
        try:
            yield
        finally:
            settings.cache_clear()


def _free_ports(n: int) -> list[int]:
    """`n` different ports that nothing listens on, below the range from which outgoing connections take theirs:
    while a server is down, a client's own connection could otherwise sit on its port.
    """
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < n:
            s = stack.enter_context(socket.socket())
            try:
                s.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
            except OSError:
                continue
            found.append(s.getsockname()[1])
        return found


@contextmanager
def _fresh_store() -> Iterator[Settings]:
    """The four databases under a prefix nobody else has, migrated; dropped at the end."""
    from python_udfs.migrate import drop_all, migrate

    with _environment(db_prefix=f"t{secrets.token_hex(4)}_"):
        try:
            migrate()
            yield settings()
        finally:
            drop_all()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures they use, so that `-m "not server"` and `-m recorded` need no care."""
    for item in items:
        for name in ("server", "recorded"):
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)


@pytest.fixture(scope="session")
def environment() -> Callable[..., object]:
    """`with environment(db_prefix="x_"): …` sets MARKETPRISM_* variables and rereads the settings."""
    return _environment


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """`free_ports(2)`: ports that nothing listens on."""
    return _free_ports


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A ClickHouse that answers: one of our own per session and xdist worker, empty and gone afterwards.

    With MARKETPRISM_TEST_HOST or MARKETPRISM_TEST_PORT (also _USER, _PASSWORD, _SECURE) it is that server.
    The settings in the environment name it, and a prefix that keeps tests away from real databases.
    """
    from python_udfs.server import start, stop

    defaults = {"host": "127.0.0.1", "port": "9000", "user": "default", "password": "", "secure": "0"}
    given = {
        name: os.environ[f"MARKETPRISM_TEST_{name.upper()}"]
        for name in defaults
        if f"MARKETPRISM_TEST_{name.upper()}" in os.environ
    }
    ours = not ({"host", "port"} & given.keys())
    if ours:
        port, http_port = _free_ports(2)
        given = {"port": str(port), "http_port": str(http_port)}
    folder = tmp_path_factory.mktemp("marketprism")
    with _environment(
        **{**defaults, **given},
        target="local" if ours else "server",
        data_dir=str(folder),
        db_prefix=f"t{secrets.token_hex(4)}_",
        hot_ttl_days="0",
        cold_ttl_days="0",
    ):
        s = settings()
        try:
            if ours:
                start()
            yield s
        finally:
            if ours:
                stop(s=s)
            shutil.rmtree(folder)


@pytest.fixture
def store(server: Settings) -> Iterator[Settings]:
    """Migrated, empty databases for one test."""
    with _fresh_store() as s:
        yield s


@pytest.fixture(scope="module")
def module_store(server: Settings) -> Iterator[Settings]:
    """Migrated, empty databases that the tests of one module share."""
    with _fresh_store() as s:
        yield s


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of recorded market data: MARKETPRISM_RECORDED_DATA, else ../shared/data."""
    folder = Path(os.environ.get("MARKETPRISM_RECORDED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no recorded data: {folder} is not there (MARKETPRISM_RECORDED_DATA names another place)"
        )
    return folder
