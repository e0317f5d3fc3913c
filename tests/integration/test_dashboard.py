"""The dashboard: on nothing, on a new store, on planted health; read only; and as a browser renders it."""

from __future__ import annotations

import html
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from python_udfs import db
from python_udfs.dashboard.app import create_app
from python_udfs.dashboard.cli import dashboard_command
from python_udfs.dashboard.panels import _panel, snapshot
from python_udfs.errors import UserError
from python_udfs.settings import Settings
from tests.integration.test_exporter import fill
from tests.integration.test_report import Page
from tests.support import execute

LOCAL = "http://127.0.0.1"
HOSTILE = "<img src=x onerror=alert(1)>"


def page(path: str = "/") -> Page:
    with TestClient(create_app(), base_url=LOCAL) as client:
        answer = client.get(path)
    assert answer.status_code == 200
    return Page(answer.text)


@pytest.fixture
def filled(store: Settings) -> Settings:
    """What the exporter's tests plant; and jobs, a deployment, drift, a hostile name."""
    fill()
    execute(
        "create table if not exists job_runs (job String, run_id UUID, started_at DateTime64(3, 'UTC'), finished_at Nullable(DateTime64(3, 'UTC')), "
        "status String, detail String, host String) engine = ReplacingMergeTree order by (job, started_at, run_id)",
        layer="serving",
    )
    execute(
        "insert into job_runs select 'archive', generateUUIDv4(), now64(3) - 60, now64(3), 'failed', 'disk full', 'h'",
        layer="serving",
    )
    execute(
        "insert into deployments (sequence, id, at, action, champion_name, champion_version, challenger_name, challenger_version, share, who, reason) "
        "select 1, generateUUIDv4(), now64(6), 'promote', 'old', 'v1', 'new', 'v2', 5, 'me@here', 'because'",
        layer="serving",
    )
    execute(
        "create table feature_drift (feature String, reference String, is_price UInt8, psi Float64, ks Nullable(Float64), exchange String, "
        "market_type String, symbol String, current_known UInt64, current_to DateTime) engine = Memory",
        layer="features",
    )
    execute(
        "insert into feature_drift values ('ofi', 'week', 0, 0.3, 0.2, 'x', 'spot', 'S', 900, now()), "
        f"('vwap', 'week', 1, 9, 0.9, 'x', 'spot', 'S', 900, now()), ('{HOSTILE}', 'week', 0, 0.01, null, 'x', 'spot', 'S', 900, now())",
        layer="features",
    )
    return store


def test_a_store_that_is_down_gets_a_page_that_says_what_to_do(
    store: Settings, environment: Callable[..., Any], free_ports: Callable[[int], list[int]]
) -> None:
    with environment(port=str(free_ports(1)[0])):
        found = page()
    assert "run make up to start the local server" in found.text
    assert "Instruments" not in found.text


def test_a_new_store_gets_a_friendly_page(store: Settings) -> None:
    found = page()
    for words in (
        "Instruments",
        "Health findings",
        "Latest features",
        "Drift",
        "Roll-out",
        "Jobs",
        "make build",
        "Nothing is deployed",
    ):
        assert words in found.text
    assert "Traceback" not in found.html
    assert "Exception" not in found.html


def test_planted_health_is_shown(filled: Settings) -> None:
    found = page("/live")
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", found.html)))
    for words in (
        "0 of 1 instruments ok 1 degraded",
        "1 findings 1 critical",
        "0 of 1 jobs ok archive failed",
        'x/spot/S"1\\ degraded bucket_duration_p90_s',
        "critical bucket_duration_p90_s",
        "130 120 docs/runbook/bucket_duration_p90_s.md",
        "archive disk full failed",
        "new:v2 at 5 %",
        "promote by me@here: because",
        "9 expectations",
        "feature_vector_v2: 800 ms from the closing trade's insert to the row, 99 % within 1.5 s",
        "bad DB::Exception failed",
        "0.3 largest PSI ofi",
    ):
        assert words in text, (words, text)
    assert "vwap" not in text  # a price
    assert found.all("img") == []
    assert HOSTILE in found.text


def test_it_is_read_only_and_answers_to_its_own_name(filled: Settings) -> None:
    with TestClient(create_app(), base_url=LOCAL) as client:
        answer = client.get("/")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert client.post("/live").status_code == 405
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        assert client.get("/docs/runbook/bucket_lag_s.md").text.startswith("# bucket_lag_s")
        assert client.get("/docs/runbook/nothing.md").status_code == 404
        assert client.get("/docs/runbook/..%2f..%2fpyproject.md").status_code == 404
        own = Page(answer.text)
        loaded = [a.get("href") for a in own.all("link")] + [a.get("src") for a in own.all("script")]
        assert loaded == ["data:,", "style.css", "live.js"]  # nothing from elsewhere
        assert "--page:" in client.get("/style.css").text
    with db.connect(readonly=2) as c:
        panel = _panel(c, f"insert into {filled.database('serving')}.quality_runs (success) select 1", 5)
    assert "readonly" in panel.problem


def test_several_pages_ask_the_store_once(filled: Settings) -> None:
    asked = 0

    def look() -> Any:
        nonlocal asked
        asked += 1
        return snapshot()

    with TestClient(create_app(600, look), base_url=LOCAL) as client:
        first, second = client.get("/live").text, client.get("/").text
    assert asked == 1
    assert first in second


def test_the_command_listens_on_this_machine_alone(
    free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda _, **words: given.update(words))
    [port] = free_ports(1)
    dashboard_command(port)
    assert (given["host"], given["port"]) == ("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(UserError, match="Give another --port"):
            dashboard_command(port)


def test_a_browser_renders_it_and_it_renews_itself(
    filled: Settings, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    looks = 0

    def look() -> Any:
        nonlocal looks
        looks += 1
        return replace(snapshot(), took_s=looks)

    [port] = free_ports(1)
    server = uvicorn.Server(
        uvicorn.Config(create_app(0.2, look), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path}",
    ]
    try:
        done = subprocess.run(
            [program, *words, "--window-size=390,2400", "--virtual-time-budget=1000", "--dump-dom", f"{LOCAL}:{port}/"],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
    finally:
        server.should_exit = True
        thread.join()
    found = Page(done.stdout)
    assert "bucket_duration_p90_s" in found.text
    assert "lost" not in [a.get("class") for a in found.all("body")]
    # what the script put in is a later look than that which the page came with
    shown = re.search(r"asked in (\d+) s", found.text)
    assert shown is not None
    assert int(shown[1]) > 1
