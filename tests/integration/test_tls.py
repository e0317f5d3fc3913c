"""TLS as a server's own would be: a proxy with a certificate of a private authority in front of the test's server."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from python_udfs import db
from python_udfs.dbt import invoke
from python_udfs.errors import UserError
from python_udfs.settings import Settings

Environment = Callable[..., AbstractContextManager[None]]


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "ca.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


@pytest.fixture(scope="module")
def tls(server: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port that speaks TLS, and the certificate to trust.

    One thread for all connections: a socket's TLS state is not safe to read and write in two.
    """
    ca, key = certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)

    async def relay(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection(server.host, server.port)
        await asyncio.gather(pump(near, to_far), pump(far, to_near))

    started: Future[tuple[int, Callable[[], object]]] = Future()

    async def serve() -> None:
        listener = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context, ssl_handshake_timeout=30)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        started.set_result(
            (listener.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(done.set))
        )
        await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    port, close = started.result(30)
    yield port, ca
    close()
    thread.join(30)


def answers() -> bool:
    with db.connect() as c:
        return bool(c.execute("select 1") == [(1,)])


def test_a_certificate_is_checked_against_the_file(
    tls: tuple[int, Path], environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, ca = tls
    with environment(target="server", port=str(port), secure="1"):
        with environment(ca_file=str(ca)):
            assert answers()
            monkeypatch.setenv("DBT_LOG_PATH", str(ca.parent))
            done = invoke(["debug"])
            assert done.success, (done.exception, [log.read_text() for log in ca.parent.glob("dbt.log")])
        monkeypatch.undo()
        with pytest.raises(
            UserError, match="check MARKETPRISM_HOST, MARKETPRISM_PORT and MARKETPRISM_SECURE"
        ):
            answers()
        with environment(verify="0"):
            assert answers()
    with environment(target="server", port=str(port), secure="0"), pytest.raises(UserError):
        answers()
