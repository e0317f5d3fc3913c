"""One way to the database: clickhouse-driver over the native protocol, with errors that say what to do next."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from python_udfs.errors import UserError
from python_udfs.settings import settings

# a server that is down is told in one message of ours, not in a traceback per try
logging.getLogger("clickhouse_driver.connection").setLevel(logging.CRITICAL)
# A join of two sharded tables sees the right one whole; an insert ends when every shard has it. As in profiles.yml.
ON_CLUSTER: Final = {"distributed_product_mode": "global", "distributed_foreground_insert": 1}
# Nobody listens, hangs up, or listens and says nothing.
NO_ANSWER: Final = (
    driver_errors.NetworkError,
    driver_errors.SocketTimeoutError,
    EOFError,
    ConnectionError,
)
_AUTHENTICATION_FAILED = 516  # newer than the driver's own list of codes


def client(database: str | None = None, *, use_numpy: bool = False, **query_settings: Any) -> Client:
    """A new client. `use_numpy`: columns go in and out as numpy arrays (what bulk transfer wants).

    Raises nothing until the first query: clickhouse-driver connects lazily.
    """
    s = settings()
    return Client(
        host=s.host,
        port=s.port,
        user=s.user,
        password=s.password,
        database=database or "default",
        secure=s.secure,
        verify=s.verify,
        ca_certs=s.ca_file and str(s.ca_file),
        compression="lz4",
        connect_timeout=5,
        send_receive_timeout=3600,
        # the server would answer in zstd, which the driver reads only with one more package
        settings={
            "use_numpy": use_numpy,
            "network_compression_method": "lz4",
            **(ON_CLUSTER if s.cluster else {}),
            **query_settings,
        },
    )


@retry(
    retry=retry_if_exception_type(NO_ANSWER),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def _ping(c: Client) -> None:
    c.execute("select 1")


@contextmanager
def connect(
    database: str | None = None, *, use_numpy: bool = False, **query_settings: Any
) -> Iterator[Client]:
    """A client that was seen to answer, closed at the end.

    Raises:
        UserError: nothing answers there, or the user is refused; the message names the next step.
    """
    s = settings()
    c = client(database, use_numpy=use_numpy, **query_settings)
    try:
        try:
            _ping(c)
        except NO_ANSWER as e:
            hint = (
                "run `make up` to start the local server"
                if s.target == "local"
                else "check MARKETPRISM_HOST, MARKETPRISM_PORT and MARKETPRISM_SECURE"
            )
            raise UserError(f"no ClickHouse answers at {s.host}:{s.port}: {hint}") from e
        except driver_errors.ServerException as e:
            if e.code == _AUTHENTICATION_FAILED:
                raise UserError(
                    f"ClickHouse at {s.host}:{s.port} refuses user {s.user!r}: "
                    "check MARKETPRISM_USER and MARKETPRISM_PASSWORD"
                ) from e
            if e.code == driver_errors.ErrorCodes.UNKNOWN_DATABASE:
                raise UserError(
                    f"ClickHouse at {s.host}:{s.port} has no database {database!r}: run `make migrate`"
                ) from e
            raise
        yield c
    finally:
        c.disconnect()


def rows(c: Client, query: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """A query's result as one dict a row (small results only: for bulk use a `use_numpy` client)."""
    data, columns = c.execute(query, params, with_column_types=True)
    names = [name for name, _ in columns]
    return [dict(zip(names, row, strict=True)) for row in data]


def quote(value: str) -> str:
    """A ClickHouse string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def names(values: Sequence[str]) -> str:
    """A comma-separated list of quoted identifiers."""
    return ", ".join("`" + v.replace("\\", "\\\\").replace("`", "\\`") + "`" for v in values)
