"""The process that is the local ClickHouse server; `python_udfs.server` starts it, detached.

    python -m python_udfs.server_process ROOT PORT HTTP_PORT

The engine is the one inside the `chdb-core` wheel: its extension module `_chdb` has one function, `query()`,
that runs clickhouse-local's own `main()`. clickhouse-local reads `config.xml` from the working directory and
can open a server's ports (`SYSTEM START LISTEN`). So it is given statements that open the ports, say so, and
then wait until a stop is asked for; what answers on the ports meanwhile is ClickHouse's own protocol code.
(`import chdb` would not do: it starts another engine in the same library, which has no ports to open.)
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import os
import signal
import socket
import stat
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import NoReturn

STOP_WAIT_S = 20
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
READY, DONE = b"R", b"D"  # on the event pipe, where a signal's byte is its number


def identity(pid: int) -> str | None:
    """What tells this process from a later one with the same pid: boot id and start tick. None: not alive."""
    try:
        # The name in parentheses may hold anything, so fields are counted from the last ")".
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def load_engine() -> ModuleType:
    """The wheel's extension module, loaded without the `chdb` package around it.

    Raises:
        RuntimeError: the wheel has no such module, or one without `query()`.
    """
    package = importlib.util.find_spec("chdb")
    places = package.submodule_search_locations if package and package.submodule_search_locations else []
    files = [file for place in places for file in sorted(Path(place).glob("_chdb.*so"))]
    if not files:
        raise RuntimeError("chdb-core is installed without its extension module _chdb")
    # Its allocator must be its own: without DEEPBIND `operator new` may come from another library.
    sys.setdlopenflags(sys.getdlopenflags() | os.RTLD_DEEPBIND)
    loader = importlib.machinery.ExtensionFileLoader("_chdb", str(files[0]))
    spec = importlib.util.spec_from_file_location("_chdb", files[0], loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    if not hasattr(module, "query"):
        raise RuntimeError("this chdb-core has no _chdb.query()")
    return module


def full_pipe() -> tuple[int, int]:
    """A pipe that the next writer has to wait on, until somebody reads."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(size))
    return reader, writer


def drain(reader: int) -> None:
    """Reads the pipe empty, for ever, in the background."""

    def run() -> None:
        while os.read(reader, 65536):
            pass

    threading.Thread(target=run, daemon=True).start()


def drop_clients(ports: set[int]) -> None:
    """Shuts the connections accepted on `ports`: the engine would wait seconds for idle ones."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(entry.stat().st_mode):
                with socket.socket(fileno=os.dup(int(entry.name))) as s:
                    if s.family == socket.AF_INET and s.getsockname()[1] in ports:
                        s.getpeername()  # an OSError for the listening socket, which stays
                        s.shutdown(socket.SHUT_RDWR)


def leave(message: str = "") -> NoReturn:
    """Ends the process past the engine's static destructors, which may hang: its files are closed by then."""
    if message:
        print(f"server: {message}", file=sys.stderr, flush=True)
    os._exit(1 if message else 0)


def serve(root: Path, ports: set[int]) -> NoReturn:
    """Runs the wheel's engine on ROOT/data with ROOT/config/config.xml until a stop signal."""
    os.chdir(root / "config")  # where clickhouse-local looks for config.xml
    engine = load_engine()
    events, post = os.pipe()
    os.set_blocking(post, False)  # as set_wakeup_fd wants it
    hold, wait_here = full_pipe()
    failure: list[str] = []

    statements = (
        "SYSTEM START LISTEN TCP",
        "SYSTEM START LISTEN HTTP",
        f"INSERT INTO FUNCTION file('/dev/fd/{post}', 'RawBLOB', 's String') SELECT '{READY.decode()}'",
        # SHOW PROCESSLIST is not in the process list itself: clients neither see it nor can kill it.
        f"SHOW PROCESSLIST INTO OUTFILE '/dev/fd/{wait_here}' APPEND FORMAT TabSeparated",
        "KILL QUERY WHERE 1 ASYNC FORMAT Null",  # a stop does not wait for clients
    )

    def run() -> None:
        try:
            result = engine.query(";\n".join(statements), "TabSeparated", path=str(root / "data"))
            if result.has_error():
                failure.append(result.error_message())
        except Exception as e:  # whatever the engine throws is the reason to print
            failure.append(str(e) or repr(e))
        os.write(post, DONE)

    def listen_for_stop() -> None:
        # By way of the pipe: a signal that meets one of the engine's threads would not wake this one.
        signal.set_wakeup_fd(post)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)

    listen_for_stop()
    thread = threading.Thread(target=run, name="clickhouse", daemon=True)
    thread.start()
    while (event := os.read(events, 1))[0] not in STOP_SIGNALS:
        if event == READY:
            listen_for_stop()  # again: the engine may have put its own handlers in place
            os.chdir(root / "user_files")  # relative paths in file() lie there
        elif event == DONE:
            leave(f"the engine stopped by itself: {failure[0] if failure else 'see above'}")

    drain(hold)  # the statement that waits returns, and with it the engine's main()
    thread.join(0.5)  # cancelled queries tell their clients so
    for _ in range(STOP_WAIT_S * 5):
        if not thread.is_alive():
            leave(f"the engine stopped with an error: {failure[0]}" if failure else "")
        drop_clients(ports)
        thread.join(0.2)
    leave(f"the engine did not stop within {STOP_WAIT_S} s; left it")


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]), {int(port) for port in sys.argv[2:]})
    except RuntimeError as error:
        leave(str(error))
