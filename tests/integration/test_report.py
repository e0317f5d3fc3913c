"""The report page from a small store: every section, self-contained, escaped, and clear errors."""

from __future__ import annotations

import html
import random
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from uuid import uuid4

import pytest
import typer
from typer.testing import CliRunner

from python_udfs.errors import UserError
from python_udfs.jobs import catalog, report
from python_udfs.settings import Settings
from tests.oracles.clock import SECOND_US, Trade
from tests.support import AAA, Instrument, dbt, execute, insert_books, insert_trades, insert_watermark, query

START = 1_767_571_200 * SECOND_US  # 2026-01-05 00:00:00 UTC
E8 = 10**8
HOSTILE: Instrument = ("alpha", "spot", """<script>alert("x")</script>'\\""")
LONELY: Instrument = ("alpha", "spot", "NOBOOK")
SECTIONS = {"store", "clock", "durations", "features", "labels", "models", "latency"}


class Page(HTMLParser):
    """What a browser would make of the page: its elements, anchors, texts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.html = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _fill(instrument: Instrument, seed: int, *, book: bool = True) -> None:
    r = random.Random(seed)
    t, price, trades, books = START, 100 * E8, [], []
    for i in range(600):
        t += r.randrange(1, 1_000_000)
        price += r.choice([-1, 0, 1]) * E8 // 100
        late = i % 50 == 49
        trades.append(
            Trade(
                t,
                i + 1,
                str(i + 1),
                r.randrange(1, 3 * E8),
                t + late * 9_000_000,
                price,
                r.choice(["buy", "sell"]),
            )
        )
        books.append(
            (t, i + 1, price - E8 // 200, price + E8 // 200, r.randrange(1, E8), r.randrange(1, E8), t)
        )
    insert_trades(trades, instrument)
    if book:
        insert_books(books, instrument)
    insert_watermark(instrument, "trades", t + 3600 * SECOND_US)


@pytest.fixture(scope="module")
def built(module_store: Settings) -> Settings:
    for seed, instrument in enumerate((AAA, HOSTILE, LONELY)):
        _fill(instrument, seed, book=instrument != LONELY)
    execute(
        "insert into quarantine (kind, data_source, file, line, field, reason_code, reason, raw, load_id) "
        "values",
        [("trades", "binance_ws", "<i>.gz", 7, "p", "bad_number", 'bad_number: "<b>6x"', "{}", "x")],
    )
    dbt("seed")
    dbt("run", t_target_s=3, t_max_s=6)
    return module_store


@pytest.fixture(scope="module")
def page(built: Settings, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = report.write_report(tmp_path_factory.mktemp("page") / "folder" / "report.html")
    assert not path.with_name("report.html.part").exists()
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_is_there_and_linked(page: Page) -> None:
    ids = {a["id"] for a in page.all("h2")}
    assert ids == SECTIONS
    assert {a["href"] for a in page.all("a")} == {f"#{i}" for i in SECTIONS}
    assert "3 instruments" in page.text
    assert "1,800trades" in page.text
    assert "36late trades2.00 %" in page.text


def test_every_feature_and_horizon_is_shown(page: Page, built: Settings) -> None:
    columns = "select name from system.columns where database = currentDatabase() and table = '{}'"
    names = {r["name"] for r in query(columns.format("feature_vector_v1"))}
    hidden = {"exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end"}
    shown = {name for name in names if f"<h4>{name}<" in page.html}
    assert shown == names - hidden
    for horizon in ("1 bucket", "3 buckets", "5 buckets", "5 s", "10 s", "30 s", "60 s", "300 s"):
        assert f">{horizon}</text>" in page.html


def test_it_needs_nothing_from_outside(page: Page) -> None:
    assert len(page.html) < 3_000_000
    assert not page.all("script") + page.all("link") + page.all("img") + page.all("iframe")
    assert "://" not in page.html
    assert "@import" not in page.html
    assert "url(" not in page.html
    assert "prefers-color-scheme: dark" in page.html


def test_every_chart_has_words_and_every_figure_its_sql(page: Page) -> None:
    charts = page.all("svg")
    assert len(charts) > 35
    assert all(c["role"] == "img" and len(c["aria-label"] or "") > 15 for c in charts)
    # a figure about files, not rows, has none: the model that is not there
    assert len(page.all("details")) == len(page.all("figure")) - 1
    assert page.text.count("_features.unified_buckets") >= 3


def test_a_hostile_symbol_is_only_text(page: Page, built: Settings, tmp_path: Path) -> None:
    assert HOSTILE[2] in page.text
    assert "<i>.gz:7" in page.text
    assert "<script" not in page.html
    close = Page(report.write_report(tmp_path / "r.html", HOSTILE, hours=0.05).read_text(encoding="utf-8"))
    assert f"alpha/spot/{HOSTILE[2]}: " in close.text
    assert "<script" not in close.html


def test_an_instrument_without_a_book_has_a_page(built: Settings, tmp_path: Path) -> None:
    close = Page(report.write_report(tmp_path / "r.html", LONELY).read_text(encoding="utf-8"))
    assert "last trade price (no book was loaded)" in close.text
    assert "always NULL" in close.text


def test_the_sql_runs_as_it_is_shown(page: Page) -> None:
    shown = re.findall(r"<pre>(.*?)</pre>", page.html, re.DOTALL)
    assert len(shown) >= 10
    for sql in shown:
        query(html.unescape(sql))


def test_without_a_model_or_scores_it_says_what_to_run(page: Page) -> None:
    assert "make train" in page.text
    assert "make score" in page.text


def test_scores_become_a_histogram(built: Settings, tmp_path: Path) -> None:
    now = datetime(2026, 1, 5, 1, tzinfo=UTC)
    columns = (
        "request_id, predicted_at, exchange, market_type, symbol, bucket_id, bucket_ts_end, model_name, "
        "model_version, feature_vector_version, feature_hash, missing_features, stale, age_ms, "
        "probabilities, score, "
        "read_us, prepare_us, run_us, total_us"
    )
    rows = [
        (
            uuid4(),
            now,
            *AAA,
            1,
            now,
            "<b>model",
            "v1",
            1,
            "h",
            0,
            i == 0,
            1500,
            [0.2, 0.3, 0.5],
            0.3,
            900,
            50,
            50,
            1000 + i,
        )
        for i in range(4)
    ]
    execute(f"insert into predictions ({columns}) values", rows, layer="serving")
    try:
        got = Page(report.write_report(tmp_path / "r.html").read_text(encoding="utf-8"))
    finally:
        execute("truncate table predictions", layer="serving")
    assert "Half of 4 requests take under 1 ms" in got.text
    assert "25.0 % of scores came from a row that was too old" in got.text
    assert "<b>model" in got.text
    assert "<b>model" not in got.html


def test_the_command_writes_where_it_is_told(built: Settings, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report.report_command)
    out = tmp_path / "deep" / "page.html"
    done = CliRunner().invoke(
        app, ["--out", str(out), "--instrument", "alpha/spot/AAAUSDT", "--hours", "0.01"]
    )
    assert done.exit_code == 0, done.output
    assert str(out) in done.output
    stretch = re.search(
        r"alpha/spot/AAAUSDT: (\d+) buckets in (\d+\.?\d*) s", out.read_text(encoding="utf-8")
    )
    assert stretch
    # 36 s, and what of the first bucket lies before them
    assert int(stretch[1]) > 3
    assert 30 <= float(stretch[2]) <= 36 + 6
    assert isinstance(CliRunner().invoke(app, ["--instrument", "AAAUSDT"]).exception, UserError)


def test_an_unknown_instrument_names_those_there_are(built: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no buckets of alpha/spot/ZZZ; there are: .*alpha/spot/AAAUSDT"):
        report.write_report(tmp_path / "r.html", ("alpha", "spot", "ZZZ"))
    assert not list(tmp_path.iterdir())


def test_an_empty_store_builds_passes_its_tests_and_says_what_to_run(store: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no buckets: run `make build`"):
        report.write_report(tmp_path / "r.html")
    dbt("seed")
    dbt("run")
    dbt("test", "--exclude-resource-type", "unit_test")
    with pytest.raises(UserError, match="no buckets: run `make build`"):
        report.write_report(tmp_path / "r.html")


def test_the_catalogue_page_has_a_line_per_feature(built: Settings, tmp_path: Path) -> None:
    features = catalog.read_catalog()
    page = Page(
        catalog.write_catalog(features, tmp_path / "catalog.html", HOSTILE).read_text(encoding="utf-8")
    )
    cards = [a["id"] for a in page.all("div") if a.get("class") == "card"]
    assert sorted(map(str, cards)) == sorted(f.name for f in features)
    assert len(page.all("svg")) == len(features)
    assert "<script" not in page.html
    assert f"{len(features)}features" in page.text


def test_the_catalogue_page_needs_buckets_of_the_instrument(built: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no buckets of beta/spot/ZZZ"):
        catalog.write_catalog(catalog.read_catalog(), tmp_path / "catalog.html", ("beta", "spot", "ZZZ"))
    assert not (tmp_path / "catalog.html").exists()


def test_the_catalogue_is_printed_by_family_and_a_wrong_name_lists_the_right_ones() -> None:
    from python_udfs.cli import app

    runner = CliRunner()
    done = runner.invoke(app, ["catalog", "--no-page"])
    assert done.exit_code == 0
    assert f"{len(catalog.read_catalog())} features in" in done.output
    assert "kyle_lambda" in runner.invoke(app, ["catalog", "--family", "price_impact"]).output
    wrong = runner.invoke(app, ["catalog", "--family", "nothing"])
    assert isinstance(wrong.exception, UserError)
    assert "price_impact" in str(wrong.exception)


def test_a_broken_catalogue_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "catalog.csv"
    file.write_text("name,family,formula,unit,source,priority,cost,owner\na,b,c\n")
    with pytest.raises(UserError, match=r"catalog.csv, line 2: expected 8 fields"):
        catalog.read_catalog(file)


def test_a_sparkline_shows_gaps_and_lonely_values() -> None:
    nan = float("nan")
    assert "no value" in catalog.sparkline([nan, nan], "x")
    drawn = catalog.sparkline([1, 2, nan, 5, nan, 3, 4], "x")
    assert drawn.count("M") == 3
    assert drawn.count("<rect") == 1
