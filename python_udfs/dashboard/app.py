"""The page: a Starlette app that renders a snapshot on the server; a few lines of JavaScript fetch it anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from python_udfs.dashboard.panels import HEADLINES, Panel, Row, Snapshot, snapshot
from python_udfs.exporter import alerts
from python_udfs.jobs.report import svg
from python_udfs.settings import REPOSITORY, Layer, settings

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_INSTRUMENT: Final = ("exchange", "market_type", "symbol")


class _Latest:
    """A snapshot not older than `every_s`; several pages at once ask the store once."""

    def __init__(self, every_s: float, look: Callable[[], Snapshot]) -> None:
        self._every_s, self._look = every_s, look
        self._lock = threading.Lock()
        self._at = -float("inf")
        self._snapshot: Snapshot | None = None

    def __call__(self) -> Snapshot:
        with self._lock:
            if self._snapshot is None or time.monotonic() - self._at >= self._every_s:
                self._snapshot = self._look()
                self._at = time.monotonic()
            return self._snapshot


def create_app(every_s: float = 5, look: Callable[[], Snapshot] = snapshot) -> Starlette:
    """The page's app.

    Args:
        every_s: seconds between two looks at the store.
        look: gives what is shown.
    """
    jinja = Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("python_udfs.dashboard", "."),
                PrefixLoader({"report": PackageLoader("python_udfs.jobs.report", ".")}),
            ]
        ),
        autoescape=True,
        undefined=StrictUndefined,
    )
    jinja.filters |= {name: getattr(svg, name) for name in ("number", "seconds", "percent", "count")}
    latest = _Latest(every_s * 0.9, look)

    def page(template: str) -> Callable[[Request], Response]:
        def endpoint(_: Request) -> Response:
            text = jinja.get_template(template).render(every_s=every_s, **_context(latest()))
            return HTMLResponse(text, headers=_HEADERS)

        return endpoint

    def asset(template: str, kind: str) -> Callable[[Request], Response]:
        text = jinja.get_template(template).render()

        def endpoint(_: Request) -> Response:
            return Response(text, media_type=kind, headers=_HEADERS)

        return endpoint

    return Starlette(
        routes=[
            Route("/", page("page.html.j2")),
            Route("/live", page("live.html.j2")),
            Route("/style.css", asset("style.css.j2", "text/css")),
            Route("/live.js", asset("live.js", "text/javascript")),
            Route("/docs/runbook/{name}.md", _runbook),
        ],
        # another site's name that resolves to this machine is not answered
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])],
    )


def _runbook(request: Request) -> Response:
    """A page of docs/runbook, as it is written."""
    folder = REPOSITORY / "docs" / "runbook"
    pages = {path.stem: path for path in folder.glob("*.md")}
    path = pages.get(request.path_params["name"])
    if path is None:
        return PlainTextResponse("no such page\n", status_code=404, headers=_HEADERS)
    return PlainTextResponse(path.read_text(encoding="utf-8"), headers=_HEADERS)


def _context(s: Snapshot) -> dict[str, Any]:
    """What the template needs."""
    layers: tuple[Layer, ...] = ("features", "serving")
    limits = sorted({t.threshold for t in alerts.thresholds() if t.metric == "feature_psi_week"})
    return {
        "at": s.at,
        "took_s": s.took_s,
        "down": s.down,
        "databases": ", ".join(settings().database(layer) for layer in layers),
        "panels": s.panels,
        "headlines": HEADLINES,
        "psi_limits": limits,
        "instruments": [] if s.down else _instruments(s),
        "tiles": [] if s.down else _tiles(s),
    }


def _instruments(s: Snapshot) -> list[dict[str, Any]]:
    """One entry per instrument that any panel knows."""

    def by_instrument(panel: str) -> dict[tuple[str, ...], Row]:
        return {tuple(str(r[k]) for k in _INSTRUMENT): r for r in s.panels[panel].rows}

    buckets, states, prices, scores = map(by_instrument, ("buckets", "states", "prices", "scores"))
    return [
        {
            "name": "/".join(key),
            "buckets": buckets.get(key),
            "state": states.get(key),
            "spark": _spark(prices[key]["prices"]) if key in prices else "",
            "score": scores.get(key),
        }
        for key in sorted(buckets.keys() | states.keys())
    ]


def _spark(values: list[float]) -> Markup:
    """A line of the newest values, without axes."""
    if len(values) < 2:
        return Markup("")
    x = svg.Scale(0, len(values) - 1, 1, 131)
    y = svg.Scale(*svg.padded(values), 25, 1)
    line = svg.polyline([(x(i), y(v)) for i, v in enumerate(values)], "")
    alt = f"close price of the last {len(values)} buckets, from {values[0]:g} to {values[-1]:g}"
    return svg.drawing(132, 26, alt, [line], "spark")


def _tiles(s: Snapshot) -> list[dict[str, str]]:
    panels = s.panels
    states = [r["state"] for r in panels["states"].rows]
    known = len(panels["buckets"].rows)
    sound = states.count("ok")
    tiles = [
        _tile(
            f"{sound} of {len(states)}" if states else str(known),
            "instruments ok" if states else "instruments",
            ", ".join(f"{states.count(n)} {n}" for n in ("degraded", "stale", "halted") if n in states)
            or ("none is degraded" if states else "of unknown state"),
            "" if not states else "good" if sound == len(states) else "amber",
        )
    ]
    findings = panels["findings"]
    critical = sum(r["severity"] == "critical" for r in findings.rows)
    tiles.append(
        _tile(
            svg.MISSING if findings.problem else str(len(findings.rows)),
            "findings",
            "not measured yet" if findings.problem else f"{critical} critical",
            "warn" if critical else "amber" if findings.rows else "" if findings.problem else "good",
        )
    )
    lags = [r["lag_s"] for r in panels["buckets"].rows]
    tiles.append(
        _tile(svg.seconds(min(lags)) if lags else svg.MISSING, "since the newest bucket", "of any instrument")
    )
    scores = panels["scores"].rows
    tiles.append(
        _tile(
            svg.seconds(min(r["age_s"] for r in scores)) if scores else svg.MISSING,
            "since the newest score",
            f"{len(scores)} instruments scored" if scores else "nothing was scored",
        )
    )
    drift = panels["drift"].rows
    tiles.append(
        _tile(svg.number(drift[0]["psi"]), "largest PSI", drift[0]["feature"])
        if drift
        else _tile(svg.MISSING, "largest PSI", "not measured yet")
    )
    tiles.append(_jobs_tile(panels["jobs"]))
    return tiles


def _jobs_tile(panel: Panel) -> dict[str, str]:
    failed = [r["job"] for r in panel.rows if r["ended"] == "failed"]
    if not panel.rows:
        return _tile(svg.MISSING, "jobs", "none has run")
    note = ", ".join(failed) + " failed" if failed else "the last run of each"
    return _tile(
        f"{len(panel.rows) - len(failed)} of {len(panel.rows)}", "jobs ok", note, "warn" if failed else "good"
    )


def _tile(value: str, name: str, note: str, css: str = "") -> dict[str, str]:
    return {"value": value, "name": name, "note": note, "css": css}
