"""The local server as a user meets it: each test starts its own in a folder of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors
from typer.testing import CliRunner

from python_udfs import server
from python_udfs.errors import UserError
from python_udfs.server import start, status, stop
from python_udfs.server_process import identity
from python_udfs.settings import Settings


@pytest.fixture
def own(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> Iterator[Settings]:
    """Settings of a server that is not started yet; stopped at the end whatever the test did."""
    port, http_port = free_ports(2)
    s = Settings(
        target="local", host="127.0.0.1", port=port, http_port=http_port, user="default", password="",
        secure=False, db_prefix="", data_dir=tmp_path,
    )  # fmt: skip
    yield s
    stop(s)


def client(s: Settings) -> Client:
    return Client(s.host, s.port, user=s.user, password=s.password, connect_timeout=2)


def kill(s: Settings) -> None:
    """kill -9, and wait until it is gone."""
    info = status(s)
    assert info is not None
    os.kill(info.pid, signal.SIGKILL)
    while identity(info.pid) is not None:
        time.sleep(0.01)


def write_pid_file(s: Settings, text: str) -> None:
    (s.data_dir / "clickhouse").mkdir()
    (s.data_dir / "clickhouse" / "server.pid").write_text(text)


def test_start_answers_like_a_server_and_stop_ends_it(own: Settings) -> None:
    assert status(own) is None
    info = start(s=own)
    assert status(own) == info
    assert stat.S_IMODE(info.root.stat().st_mode) == 0o700
    assert (info.port, info.http_port, info.root) == (own.port, own.http_port, own.data_dir / "clickhouse")
    assert identity(info.pid) is not None

    with client(own) as c:
        assert c.execute("select timezone(), now() = toDateTime(now(), 'UTC')") == [("UTC", 1)]
        changed = dict(c.execute("select name, value from system.settings"))
        assert changed["deduplicate_blocks_in_dependent_materialized_views"] == "1"
        assert changed["allow_introspection_functions"] == "0"
        assert changed["implicit_select"] == "0"
        assert c.execute("select currentDatabase()") == [("default",)]
        c.execute("select 4711")
        c.execute("system flush logs")
        assert c.execute("select count() > 0 from system.query_log where query = 'select 4711'") == [(1,)]
        # Nothing of the machinery is visible, or can be killed, from outside.
        assert c.execute("select count() from system.processes") == [(1,)]
        c.execute("kill query where 1 async")
    with urllib.request.urlopen(f"http://127.0.0.1:{own.http_port}/?query=select%2042") as reply:
        assert reply.read() == b"42\n"

    assert stop(own) is True
    assert status(own) is None
    assert stop(own) is False
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own.port), timeout=1)


def test_a_repeated_block_changes_neither_table_nor_view(own: Settings) -> None:
    """What the loader relies on, with no setting of its own but the token."""
    start(s=own)
    with client(own) as c:
        c.execute(
            "create table t (a Int64) engine MergeTree order by a "
            "settings non_replicated_deduplication_window = 100"
        )
        c.execute(
            "create materialized view v engine SummingMergeTree order by k "
            "settings non_replicated_deduplication_window = 100 "
            "as select a % 2 as k, count() as n from t group by k"
        )
        for _ in range(3):
            c.execute(
                "insert into t values",
                [(i,) for i in range(10)],
                settings={"insert_deduplication_token": "x"},
            )
        assert c.execute("select count() from t") == [(10,)]
        assert c.execute("select k, sum(n) from v group by k order by k") == [(0, 5), (1, 5)]


def test_an_executable_function_can_be_added_by_files(own: Settings) -> None:
    root = own.data_dir / "clickhouse"
    start(s=own)
    stop(own)
    script = root / "user_scripts" / "twice.py"
    script.write_text(f"#!{sys.executable}\nimport sys\nfor l in sys.stdin: print(2 * int(l), flush=True)\n")
    script.chmod(0o755)
    (root / "config" / "twice_function.xml").write_text(
        "<functions><function><type>executable</type><name>twice</name><return_type>Int64</return_type>"
        "<argument><type>Int64</type></argument><format>TabSeparated</format><command>twice.py</command>"
        "</function></functions>"
    )
    start(s=own)
    with client(own) as c:
        assert c.execute("select twice(toInt64(21))") == [(42,)]


def test_a_restart_keeps_tables_rows_and_the_query_log(own: Settings) -> None:
    first = start(s=own)
    with client(own) as c:
        c.execute("create database d")
        c.execute("create table d.t (a Int64, b String) engine MergeTree order by a")
        c.execute("insert into d.t values", [(i, "x" * i) for i in range(100)])
        c.execute("system flush logs")
        logged = c.execute("select count() from system.query_log")[0][0]
    stop(own)
    second = start(s=own)
    assert second.pid != first.pid
    with client(own) as c:
        assert c.execute("select count(), sum(a), sum(length(b)) from d.t") == [(100, 4950, 4950)]
        assert c.execute("select count() from system.query_log")[0][0] >= logged > 0


def test_a_start_right_behind_a_kill_9_brings_it_up(own: Settings) -> None:
    """Its ports, its data and its pid are those of a process that is still ending."""
    start()
    for _ in range(8):
        info = status()
        assert info is not None
        os.kill(info.pid, signal.SIGKILL)
        assert start().pid != info.pid


def test_kill_9_while_inserting_loses_no_acknowledged_block(own: Settings) -> None:
    start(s=own)
    with client(own) as c:
        c.execute("create table t (block Int64, i Int64) engine MergeTree order by (block, i)")
    acknowledged: list[int] = []

    def insert() -> None:
        with client(own) as c:
            for block in range(100_000):
                try:
                    c.execute("insert into t values", [(block, i) for i in range(50)])
                except (driver_errors.Error, EOFError, OSError):
                    return
                acknowledged.append(block)

    thread = threading.Thread(target=insert)
    thread.start()
    while len(acknowledged) < 30:
        time.sleep(0.01)
    kill(own)
    thread.join()
    assert status(own) is None  # the pid file is still there
    start(s=own)
    with client(own) as c:
        found = dict(c.execute("select block, count() from t group by block"))
    assert set(found.values()) == {50}
    # The block in flight may have been written without its acknowledgement; nothing else may differ.
    assert set(acknowledged) <= set(found) <= {*acknowledged, len(acknowledged)}


def test_stop_does_not_wait_for_a_running_query(own: Settings) -> None:
    start(s=own)
    outcome: list[BaseException] = []

    def slow() -> None:
        try:
            with client(own) as c:
                c.execute("select sleepEachRow(1) from numbers(60) settings max_block_size = 1")
        except (driver_errors.Error, EOFError, OSError) as e:
            outcome.append(e)

    thread = threading.Thread(target=slow)
    thread.start()
    with client(own) as c:
        while (
            c.execute("select count() from system.processes where query like '%sleepEachRow(1)%'")[0][0] < 2
        ):
            time.sleep(0.01)
        began = time.monotonic()  # this connection stays open, idle
        assert stop(own)
    thread.join()
    assert time.monotonic() - began < 10
    assert len(outcome) == 1


def test_starting_twice_is_one_server(own: Settings) -> None:
    assert start(s=own) == start(s=own)


def test_two_starts_at_once_are_one_server(own: Settings) -> None:
    env = {
        **os.environ,
        "MARKETPRISM_TARGET": "local",
        "MARKETPRISM_DATA_DIR": str(own.data_dir),
        "MARKETPRISM_PORT": str(own.port),
        "MARKETPRISM_HTTP_PORT": str(own.http_port),
    }
    command = [sys.executable, "-c", "from python_udfs.server import start; print(start().pid)"]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    pids = {process.communicate()[0] for process in both}
    info = status(own)
    assert info is not None  # and it outlives the processes that started it
    assert pids == {f"{info.pid}\n"}


def test_other_ports_than_the_running_servers_are_refused(
    own: Settings, free_ports: Callable[[int], list[int]]
) -> None:
    start(s=own)
    with pytest.raises(UserError, match=rf"already runs, on ports {own.port} .*marketprism server down"):
        start(s=own.model_copy(update={"port": free_ports(1)[0]}))


@pytest.mark.parametrize(
    "text",
    ["", "4711", "[]", '{"pid": "x"}', '{"pid": 1}', "\x00\xff",
     json.dumps({"pid": 2**22 + 1, "identity": None, "port": 1, "http_port": 2, "binary": None})],
)  # fmt: skip
def test_a_pid_file_without_a_process_is_no_server(own: Settings, text: str) -> None:
    write_pid_file(own, text)
    assert status(own) is None
    assert stop(own) is False


def test_a_stale_pid_file_that_names_a_living_process_harms_nobody(own: Settings) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert identity(bystander.pid) is not None
        record = {
            "pid": bystander.pid,
            "identity": "another boot:1",
            "port": 1,
            "http_port": 2,
            "binary": None,
        }
        write_pid_file(own, json.dumps(record))
        assert status(own) is None
        assert stop(own) is False
        assert bystander.poll() is None
        assert start(s=own).pid != bystander.pid
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("name", ["MARKETPRISM_PORT", "MARKETPRISM_HTTP_PORT"])
def test_a_port_in_use_says_by_whom_and_what_to_set(own: Settings, name: str) -> None:
    port = own.port if name == "MARKETPRISM_PORT" else own.http_port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError) as e:
        start(s=own)
    assert f"port {port} " in str(e.value)
    assert f"pid {os.getpid()} (" in str(e.value)
    assert f"Set {name} to a free port" in str(e.value)
    assert status(own) is None


def test_one_port_for_both_protocols_is_refused(own: Settings) -> None:
    with pytest.raises(UserError, match="must differ"):
        start(s=own.model_copy(update={"http_port": own.port}))


def test_a_folder_in_use_by_a_server_without_pid_file(
    own: Settings, free_ports: Callable[[int], list[int]]
) -> None:
    start(s=own)
    pid_file = own.data_dir / "clickhouse" / "server.pid"
    record = pid_file.read_text()
    pid_file.unlink()
    port, http_port = free_ports(2)
    with pytest.raises(UserError, match=r"is in use by another ClickHouse.*MARKETPRISM_DATA_DIR"):
        start(s=own.model_copy(update={"port": port, "http_port": http_port}))
    pid_file.write_text(record)


def test_a_folder_that_cannot_be_written(own: Settings) -> None:
    (own.data_dir / "file").touch()
    with pytest.raises(UserError, match="MARKETPRISM_DATA_DIR"):
        start(s=own.model_copy(update={"data_dir": own.data_dir / "file"}))


def test_wrong_and_missing_wheel_name_the_command(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(server, "WHEEL", "1.2.3")
    with pytest.raises(UserError, match=r"needs 1\.2\.3: run `.* -m pip install chdb-core==1\.2\.3`"):
        start(s=own)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"neither a `clickhouse` binary on PATH nor .*pip install chdb-core"):
        start(s=own)


def test_a_late_server_is_left_starting_and_the_next_start_waits_on(own: Settings) -> None:
    with pytest.raises(UserError, match=r"does not answer on port .* left starting"):
        start(0, own)
    late = status(own)
    assert late is not None
    assert start(s=own) == late


def test_a_server_that_is_still_starting_can_be_stopped(own: Settings) -> None:
    with pytest.raises(UserError, match="left starting"):
        start(0, own)
    assert stop(own) is True
    assert status(own) is None


def test_a_server_that_dies_at_once_says_why(own: Settings) -> None:
    extra = own.data_dir / "clickhouse" / "config" / "config.d"
    extra.mkdir(parents=True)
    (extra / "broken.xml").write_text("<clickhouse><oops></clickhouse>")
    with pytest.raises(UserError, match=r"(?s)ended while starting.*broken\.xml"):
        start(s=own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "server", "host": "db.example"}, r"db\.example:.* is yours, not ours to start or stop"),
        ({"host": "db.example"}, "listens on 127.0.0.1 only"),
        ({"secure": True}, "has no TLS"),
        ({"password": "x"}, "unset .*MARKETPRISM_PASSWORD"),
        ({"user": "analyst"}, "only the user `default`"),
    ],
)
def test_a_server_that_is_not_ours_is_left_alone(
    own: Settings, change: dict[str, object], message: str
) -> None:
    s = own.model_copy(update=change)
    for call in (lambda: start(s=s), lambda: stop(s), lambda: status(s), lambda: server.logs(5, s)):
        with pytest.raises(UserError, match=message):
            call()


def test_a_binary_on_path_is_preferred(
    own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "clickhouse"
    binary.parent.mkdir()
    binary.write_text('#!/bin/sh\necho "asked: $@"\nexit 7\n')
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}{os.pathsep}{os.environ['PATH']}")
    config = tmp_path / "clickhouse" / "config" / "config.xml"
    with pytest.raises(UserError, match=f"(?s)ended while starting.*asked: server --config-file={config}"):
        start(s=own)
    assert ElementTree.parse(config).find("default_database") is None


def test_config_survives_a_path_with_markup(own: Settings) -> None:
    root = Path("/a & b/<c>")
    for wheel in (True, False):
        config = ElementTree.fromstring(server.render_config(root, own, wheel=wheel))
        assert config.findtext("path") == f"{root}/data/"
        assert config.findtext("tcp_port") == str(own.port)
        assert config.findtext("listen_host") == "127.0.0.1"
        assert config.findtext("timezone") == "UTC"


def test_commands_and_their_exit_codes(own: Settings, environment: Callable[..., Iterator[None]]) -> None:
    run = CliRunner().invoke
    with environment(
        target="local", host="127.0.0.1", user="default", password="", secure="0",
        data_dir=str(own.data_dir), port=str(own.port), http_port=str(own.http_port),
    ):  # fmt: skip
        assert run(server.app, ["status"]).exit_code == 3
        assert "not running" in run(server.app, ["down"]).output
        up = run(server.app, ["up"])
        assert (up.exit_code, up.output.split(":")[0]) == (0, "started")
        again = run(server.app, ["up"])
        assert (again.exit_code, again.output.split(":")[0]) == (0, "running already")
        shown = run(server.app, ["status"])
        assert shown.exit_code == 0
        assert f"127.0.0.1:{own.port}" in shown.output
        logged = run(server.app, ["logs", "-n", "3"])
        assert (logged.exit_code, len(logged.output.splitlines())) == (0, 3)
        with environment(target="server"):  # the same one, seen as a user's own
            assert run(server.app, ["status"]).exit_code == 0
        assert "stopped" in run(server.app, ["down"]).output
        with environment(target="server"):
            gone = run(server.app, ["status"])
            assert gone.exit_code == 3
            assert "no ClickHouse answers" in gone.output
