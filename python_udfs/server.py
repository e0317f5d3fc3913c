"""The local ClickHouse server: start, stop, look at it. `python_udfs.server_process` is the process itself.

Everything lies in `<data_dir>/clickhouse`: `data/` (ClickHouse's own), `config/` (its two files are written
anew at every start; your additions go in `config.d/*.xml`, `users.d/*.xml`, `*_function.xml` beside them),
`log/`, `user_files/`, `user_scripts/`, `server.pid`. `kill -9` loses nothing: start it again.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

import typer
from rich.console import Console

from python_udfs import access
from python_udfs.errors import UserError
from python_udfs.functions.registry import FILE as FUNCTIONS_FILE
from python_udfs.functions.registry import render_xml
from python_udfs.server_process import STOP_WAIT_S, identity
from python_udfs.settings import REPOSITORY, Settings, settings

WHEEL = "26.9.0"  # the chdb-core version this was verified with; pyproject.toml pins the same
HOST = "127.0.0.1"
ENDING_S = 8  # a killed server has let go of its ports and its data by then
NOT_RUNNING = 3  # exit code of `status`, as init scripts have it

# A view fed by a repeated block must stay as it was: loading twice changes nothing. The others are what
# clickhouse-local changes for itself, put back to a server's values.
PROFILE = {
    "deduplicate_blocks_in_dependent_materialized_views": "1",
    "allow_introspection_functions": "0",
    "storage_file_read_method": "pread",
    "implicit_select": "0",
}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A running local server.

    Attributes:
        pid: its process.
        port: native protocol, on 127.0.0.1.
        http_port: HTTP, on 127.0.0.1.
        engine: the `clickhouse` binary's path, or `chdb-core <version>`.
        root: the folder it lives in.
    """

    pid: int
    port: int
    http_port: int
    engine: str
    root: Path

    @property
    def log(self) -> Path:
        """ClickHouse's log file."""
        return self.root / "log" / "server.log"


def start(wait_s: float = 60, s: Settings | None = None) -> ServerInfo:
    """Starts the local server, or finds it running, and returns once it answers.

    Args:
        wait_s: seconds to wait for it to answer. A late server is left starting; calling again waits on.
        s: the settings; those of the process when absent.

    Raises:
        UserError: not ours to start, port or folder in use, wrong wheel, or it did not come up.
    """
    s = _local(s)
    root = s.data_dir / "clickhouse"
    with _lock(root):
        info = status(s)
        if info and (info.port, info.http_port) != (s.port, s.http_port):
            raise UserError(
                f"the server of {root} already runs, on ports {info.port} and {info.http_port}, not {s.port} "
                f"and {s.http_port}: set MARKETPRISM_PORT and MARKETPRISM_HTTP_PORT to those, or stop it "
                "first with `marketprism server down`"
            )
        ours = info is None
        if info is None:
            info = _launch(root, s)
        elif _write_functions(root) and _answers(info):
            _run(info, "system reload functions")
        deadline = time.monotonic() + wait_s
        while not _answers(info):
            if identity(info.pid) is None:
                if ours:
                    raise UserError(_why_it_died(info))
                # it was being killed when it was found
                info, ours = _launch(root, s), True
            if time.monotonic() > deadline:
                raise UserError(
                    f"the local ClickHouse (pid {info.pid}) does not answer on port {info.port} after "
                    f"{wait_s:g} s. It is left starting: run `marketprism server up` again to wait on, or "
                    f"`marketprism server down`. The end of {info.log}:\n{_tail(info.log, 15) or '(empty)'}"
                )
            time.sleep(0.05)
        return info


def stop(s: Settings | None = None) -> bool:
    """Stops the local server and waits for its end. False: none was running.

    A server that does not end on SIGTERM is killed: what was acknowledged is on disk.
    """
    s = _local(s)
    root = s.data_dir / "clickhouse"
    if not root.exists():
        return False
    with _lock(root):
        info = status(s)
        if info is None:
            return False
        with suppress(ProcessLookupError):  # it ends by itself just now
            handle = os.pidfd_open(info.pid)
            try:
                # Only now is the pid pinned to a process; that it is still ours is seen by reading again.
                if status(s) == info:
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
                    if not select.select([handle], [], [], STOP_WAIT_S + 5)[0]:
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        select.select([handle], [], [])
            finally:
                os.close(handle)
        with suppress(ChildProcessError):  # it is our child only where this same process started it
            os.waitpid(info.pid, os.WNOHANG)
        (root / "server.pid").unlink(missing_ok=True)
        return True


def status(s: Settings | None = None) -> ServerInfo | None:
    """The running local server of this data directory. None: there is none, or only a stale pid file.

    "Running" is about the process: one that is still starting counts.
    """
    s = _local(s)
    root = s.data_dir / "clickhouse"
    try:
        record = json.loads((root / "server.pid").read_text())
        pid, alive_as = int(record["pid"]), record["identity"]
        engine = record["binary"] or f"chdb-core {WHEEL}"
        info = ServerInfo(pid, int(record["port"]), int(record["http_port"]), engine, root)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or not a record of ours
        return None
    except PermissionError as e:
        raise UserError(f"{root} is another user's: set MARKETPRISM_DATA_DIR to a folder of yours") from e
    return info if alive_as is not None and identity(pid) == alive_as else None


def logs(n: int = 50, s: Settings | None = None) -> str:
    """The last `n` lines of the server's log; empty where it never ran."""
    s = _local(s)
    return _tail(s.data_dir / "clickhouse" / "log" / "server.log", n)


def render_config(root: Path, s: Settings, *, wheel: bool) -> str:
    """ClickHouse's `config.xml`. `wheel`: for the engine in chdb-core rather than for `clickhouse server`."""
    place = escape(str(root))
    # clickhouse-local's own database gets out of the way of a server's `default`. Its log level is elsewhere. Its two
    # schedule threads would refresh live views one at a time.
    local = """
    <default_database>_local</default_database>
    <background_schedule_pool_size>64</background_schedule_pool_size>
    <log-level>information</log-level>"""
    return f"""<clickhouse>
    <!-- Written anew at every start. Additions go in config.d/*.xml and users.d/*.xml beside this file. -->
    <listen_host>{HOST}</listen_host>
    <tcp_port>{s.port}</tcp_port>
    <http_port>{s.http_port}</http_port>
    <path>{place}/data/</path>
    <tmp_path>{place}/data/tmp/</tmp_path>
    <user_files_path>{place}/user_files/</user_files_path>
    <user_scripts_path>{place}/user_scripts/</user_scripts_path>
    <backups><allowed_path>{escape(str(s.backups))}/</allowed_path></backups>
    <user_defined_executable_functions_config>{place}/config/*_function.xml</user_defined_executable_functions_config>
    <default_profile>default</default_profile>
    <timezone>UTC</timezone>
    <user_directories><users_xml><path>users.xml</path></users_xml></user_directories>
    <query_log>
        <database>system</database>
        <table>query_log</table>
        <ttl>event_date + INTERVAL 14 DAY DELETE</ttl>
    </query_log>
    <shutdown_wait_unfinished>1</shutdown_wait_unfinished>
    <logger>
        <level>information</level>
        <log>{place}/log/server.log</log>
        <size>50M</size>
        <count>3</count>
    </logger>{local if wheel else ""}
</clickhouse>
"""


def render_users(prefix: str) -> str:
    """ClickHouse's `users.xml`: `default`, and a user per role of the prefix; loopback only, no passwords.

    clickhouse-local logs in as `default`.
    """
    profile = "".join(f"<{name}>{value}</{name}>" for name, value in PROFILE.items())
    role_profiles, role_users = access.users_xml(prefix)
    return f"""<clickhouse>
    <profiles><default>{profile}</default>{role_profiles}</profiles>
    <users>
        <default>
            <no_password/>
            <networks><ip>{HOST}</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <default_database>default</default_database>
            <access_management>1</access_management>
        </default>
        {role_users}
    </users>
    <quotas><default></default></quotas>
</clickhouse>
"""


def _local(s: Settings | None) -> Settings:
    """The settings, seen to name a server that is ours to start."""
    s = s or settings()
    if s.target != "local":
        raise UserError(
            f"MARKETPRISM_TARGET=server: the ClickHouse at {s.host}:{s.port} is yours, not ours to start or "
            "stop. Unset it (or set it to `local`) to use the local server"
        )
    if sys.platform != "linux":
        raise UserError(
            f"the local server runs on Linux only, and this is {sys.platform}: set "
            "MARKETPRISM_TARGET=server, MARKETPRISM_HOST and MARKETPRISM_PORT to use one elsewhere"
        )
    if s.host not in (HOST, "localhost"):
        raise UserError(
            f"MARKETPRISM_HOST={s.host}: the local server listens on {HOST} only. "
            "For a server elsewhere set MARKETPRISM_TARGET=server"
        )
    if s.secure or (s.user, s.password) != ("default", ""):
        raise UserError(
            "the local server has no TLS, no password, and only the user `default`: unset "
            "MARKETPRISM_SECURE, MARKETPRISM_USER and MARKETPRISM_PASSWORD, or set MARKETPRISM_TARGET=server"
        )
    return s


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One start or stop at a time per folder, over all processes."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / "server.lock").open("w")
    except OSError as e:
        raise UserError(
            f"cannot write in {root} ({e.strerror}): set MARKETPRISM_DATA_DIR to another folder"
        ) from e
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_wheel() -> None:
    install = f"{sys.executable} -m pip install chdb-core=={WHEEL}"
    try:
        found = importlib.metadata.version("chdb-core")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"neither a `clickhouse` binary on PATH nor the package chdb-core is here: run `{install}`"
        ) from None
    if found != WHEEL:
        raise UserError(
            f"chdb-core {found} is installed, but the local server needs {WHEEL}: run `{install}`"
        )


def _check_ports(s: Settings) -> None:
    if s.port == s.http_port:
        raise UserError(f"MARKETPRISM_PORT and MARKETPRISM_HTTP_PORT are both {s.port}: they must differ")
    for name, port in (("MARKETPRISM_PORT", s.port), ("MARKETPRISM_HTTP_PORT", s.http_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                _bind(probe, port)
            except (OSError, OverflowError) as e:
                holder = port_holder(port)
                raise UserError(
                    f"port {port} cannot be used"
                    + (f": it is held by {holder}" if holder else f" ({e})")
                    + f". Set {name} to a free port, or stop what is there"
                ) from e


def _wait_for_data(root: Path) -> None:
    """Waits for the last threads of a killed server to let go of the data. Whoever holds it longer is no such one: the
    engine then says so.
    """
    status_file = root / "data" / "status"
    deadline = time.monotonic() + ENDING_S
    while status_file.exists() and time.monotonic() < deadline:
        with status_file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            else:
                return


def _bind(probe: socket.socket, port: int) -> None:
    """Binds; a port that no living process holds is waited for: a killed server lets go of it a moment later."""
    deadline = time.monotonic() + ENDING_S
    while True:
        try:
            return probe.bind((HOST, port))
        except OSError:
            if port_holder(port) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def port_holder(port: int) -> str | None:
    """`pid 123 (its command line)` of the process that listens on a TCP port. None: it cannot be known."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_text().replace("\0", " ").strip()
                return f"pid {process.name} ({command[:100]})"
    return None


def _prepare(root: Path, s: Settings, *, wheel: bool) -> None:
    """Folders and configuration. Nobody else may read them: the data are the user's."""
    root.chmod(0o700)
    for folder in ("data/metadata", "config/config.d", "config/users.d", "log", "user_files", "user_scripts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "config" / "config.xml").write_text(render_config(root, s, wheel=wheel))
    (root / "config" / "users.xml").write_text(render_users(s.db_prefix))
    if wheel:
        # A server's `default` and `system` databases: clickhouse-local keeps its own in memory, and would
        # lose the query log at every restart.
        for name in ("default", "system"):
            file = root / "data" / "metadata" / f"{name}.sql"
            if not file.exists():
                file.write_text(f"ATTACH DATABASE _ UUID '{uuid.uuid4()}'\nENGINE = Atomic\n")


def _write_functions(root: Path) -> bool:
    """The functions that SQL may call, for ClickHouse to read. False: they are as they were."""
    file, now = root / "config" / FUNCTIONS_FILE, render_xml()
    if file.exists() and file.read_text() == now:
        return False
    file.write_text(now)
    return True


def _launch(root: Path, s: Settings) -> ServerInfo:
    """A server process on checked ports, with its files written anew."""
    binary = shutil.which("clickhouse")
    if not binary:
        _check_wheel()
    _check_ports(s)
    _wait_for_data(root)
    _prepare(root, s, wheel=not binary)
    _write_functions(root)
    return _spawn(root, s, binary)


def _spawn(root: Path, s: Settings, binary: str | None) -> ServerInfo:
    """The server process, in a session of its own: neither ctrl-C nor the end of this process reaches it."""
    if binary:
        command = [binary, "server", f"--config-file={root / 'config' / 'config.xml'}"]
    else:
        ports = [str(s.port), str(s.http_port)]
        command = [sys.executable, "-m", "python_udfs.server_process", str(root), *ports]
    with (root / "log" / "console.log").open("wb") as console:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "TZ": "UTC"},  # clickhouse-local does not read <timezone>
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    record = {"port": s.port, "http_port": s.http_port, "binary": binary}
    temporary = root / "server.pid.tmp"
    temporary.write_text(json.dumps({**record, "pid": process.pid, "identity": identity(process.pid)}))
    temporary.replace(root / "server.pid")
    return ServerInfo(process.pid, s.port, s.http_port, binary or f"chdb-core {WHEEL}", root)


def _answers(info: ServerInfo) -> bool:
    """Whether both ports are open and the native one answers a query."""
    from clickhouse_driver import errors as driver_errors

    try:
        for port in (info.port, info.http_port):
            socket.create_connection((HOST, port), timeout=2).close()
        _run(info, "select 1")
    except (driver_errors.Error, EOFError, OSError):
        return False
    return True


def _run(info: ServerInfo, sql: str) -> None:
    from clickhouse_driver import Client

    client = Client(HOST, info.port, connect_timeout=5, send_receive_timeout=5)
    try:
        client.execute(sql)
    finally:
        client.disconnect()


def _why_it_died(info: ServerInfo) -> str:
    said = _tail(info.root / "log" / "console.log", 100).splitlines()
    console = "\n".join(line for line in said if not re.match(r"\d+\. |Stack trace", line))
    if "Another server instance in same directory is already running" in console:
        return (
            f"{info.root / 'data'} is in use by another ClickHouse that has no pid file here: stop that "
            "one, or set MARKETPRISM_DATA_DIR to another folder"
        )
    return (
        f"the local ClickHouse ended while starting. What it said:\n{console or '(nothing)'}\n"
        f"The end of {info.log}:\n{_tail(info.log, 5) or '(empty)'}"
    )


def _tail(file: Path, n: int) -> str:
    """The last `n` lines of a text file; empty where there is no file."""
    try:
        with file.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 1000 * n))
            return "\n".join(f.read().decode(errors="replace").splitlines()[-n:])
    except FileNotFoundError:
        return ""


app = typer.Typer(no_args_is_help=True)
_out = Console(highlight=False, soft_wrap=True)


def _describe(info: ServerInfo) -> str:
    return (
        f"pid {info.pid}, native {HOST}:{info.port}, http://{HOST}:{info.http_port}/play\n"
        f"engine {info.engine}, folder {info.root}, log {info.log}"
    )


@app.command()
def up(
    wait: Annotated[float, typer.Option(help="Seconds to wait until it answers.")] = 60,
) -> None:
    """Start the local ClickHouse server; fine if it runs already."""
    before = status()
    info = start(wait)
    _out.print(f"[green]{'running already' if before == info else 'started'}[/]: {_describe(info)}")


@app.command()
def down() -> None:
    """Stop the local ClickHouse server; fine if none runs. The data stays."""
    _out.print("stopped" if stop() else "not running")


@app.command("status")
def status_command() -> None:
    """Say whether ClickHouse runs (with MARKETPRISM_TARGET=server: answers). Exit code: 0 yes, 3 no."""
    from python_udfs import db

    s = settings()
    info = status() if s.target == "local" else None
    if s.target == "local" and info is None:
        _out.print("not running: start it with `marketprism server up`")
        raise typer.Exit(NOT_RUNNING)
    try:
        with db.connect() as c:
            version = c.execute("select version()")[0][0]
    except UserError as e:
        _out.print(f"{'running, but ' if info else ''}{e}", markup=False)
        raise typer.Exit(0 if info else NOT_RUNNING) from e
    _out.print(
        f"[green]running[/], ClickHouse {version}: {_describe(info) if info else f'{s.host}:{s.port}'}"
    )


@app.command("logs")
def logs_command(
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many lines from the end.")] = 50,
) -> None:
    """Print the end of the server's log."""
    typer.echo(logs(lines))
