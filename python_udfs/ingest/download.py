"""Downloads days of Binance's public archive: verified, resumable, one file at a time.

A file is kept under the archive's own path with its `.CHECKSUM` beside it, and only once its sha256 agrees;
what is half there lies in `<name>.part`. So a killed run is simply run again, and a finished one costs no
request.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from python_udfs.errors import UserError
from python_udfs.settings import settings

ARCHIVE_URL: Final = "https://data.binance.vision"
USER_AGENT: Final = "marketprism-feature-store/0.1 (archive download; one connection)"
# Longer than this we do not wait when asked to: the user is told instead.
LONGEST_WAIT: Final = 600.0


class Market(StrEnum):
    """A market of the archive."""

    spot = "spot"
    um = "um"
    cm = "cm"
    option = "option"


_FOLDER: Final = {
    Market.spot: "spot",
    Market.um: "futures/um",
    Market.cm: "futures/cm",
    Market.option: "option",
}
_FUTURES: Final = (
    "trades",
    "aggTrades",
    "bookTicker",
    "bookDepth",
    "metrics",
    "fundingRate",
    "liquidationSnapshot",
)
KINDS: Final[dict[Market, tuple[str, ...]]] = {
    Market.spot: ("trades", "aggTrades"),
    Market.um: _FUTURES,
    Market.cm: _FUTURES,
    Market.option: ("BVOLIndex",),
}
MONTHLY: Final = ("fundingRate",)

T = TypeVar("T")
Outcome = Literal["downloaded", "present", "missing", "bad"]
# Called with (bytes of the file that are there, its size or None).
OnBytes = Callable[[int, int | None], None]


def archive_paths(market: Market, kind: str, symbol: str, start: date, end: date) -> list[str]:
    """The archive's paths of one kind and symbol, both ends included; months where it is published monthly.

    Raises:
        UserError: this market has no such kind, no such symbol can exist, or the range is empty.
    """
    if kind not in KINDS[market]:
        raise UserError(f"--kind {kind}: market {market} has {', '.join(KINDS[market])}")
    if not re.fullmatch(r"\w+(-\w+)*", symbol):
        raise UserError(f"--symbol {symbol!r}: a symbol as the exchange writes it is needed, e.g. BTCUSDT")
    if start > end:
        raise UserError(f"--start {start} is after --end {end}")
    days = [start + timedelta(days=i) for i in range((end - start).days + 1)]
    step = "monthly" if kind in MONTHLY else "daily"
    stamps = [f"{day:%Y-%m}" if kind in MONTHLY else day.isoformat() for day in days]
    folder = f"data/{_FOLDER[market]}/{step}/{kind}/{symbol}"
    return [f"{folder}/{symbol}-{kind}-{stamp}.zip" for stamp in dict.fromkeys(stamps)]


def parse_checksum(text: str, name: str) -> str:
    """The sha256 that a `.CHECKSUM` file (`<hex>  <name>`) gives for `name`.

    Raises:
        ValueError: it is no such file, or is about another one.
    """
    match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(\S+)\s*", text)
    if match is None:
        raise ValueError("not a checksum file")
    if match[2] != name:
        raise ValueError(f"the checksum is that of {match[2]}")
    return match[1].lower()


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def retry_after(value: str | None, now: datetime) -> float:
    """Seconds that a `Retry-After` header (seconds or an HTTP date) asks to wait; 0 where it asks nothing."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0


class _BusyError(Exception):
    """The server says to come again later."""

    def __init__(self, status: int, wait: float) -> None:
        super().__init__(f"HTTP {status}")
        self.wait = wait


@dataclass(slots=True)
class Downloader:
    """Fetches files of one archive into a folder that mirrors it.

    Attributes:
        client: one connection is enough.
        base_url: the archive's root.
        folder: where the files go.
        attempts: how often one request is tried.
        backoff: seconds before the second try; doubles with each.
    """

    client: httpx.Client
    base_url: str
    folder: Path
    attempts: int = 6
    backoff: float = 1.0
    requests: int = field(default=0, init=False)

    def fetch(self, path: str, on_bytes: OnBytes = lambda _done, _size: None) -> Outcome:
        """Make one archive file be there, whole and verified.

        Returns:
            downloaded; present (it was there, and still agrees with its checksum); missing (the archive has
            no such file); bad (its checksum does not agree: nothing of it is kept).

        Raises:
            UserError: the server cannot be reached, refuses, or stays busy. What came so far is kept.
        """
        target = self.folder / path
        checksum = target.with_name(target.name + ".CHECKSUM")
        if target.exists() and checksum.exists() and _agrees(target, checksum.read_text()):
            return "present"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = self._retry(lambda: self._text(f"{path}.CHECKSUM"))
        if text is None:
            return "missing"
        try:
            sha256 = parse_checksum(text, target.name)
        except ValueError:
            return "bad"
        part = target.with_name(target.name + ".part")
        while (how := self._retry(lambda: self._stream(path, part, on_bytes))) != "missing":
            if sha256_of(part) == sha256:
                checksum.write_text(text)
                part.replace(target)
                _validator(part).unlink(missing_ok=True)
                return "downloaded"
            _forget(part)
            if how == "whole":
                return "bad"
            # The half that was there may have been of another version: once more from nothing.
        return "missing"

    def _retry(self, request: Callable[[], T]) -> T:
        exponential = wait_exponential(multiplier=self.backoff, max=60)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(exponential(state), error.wait if isinstance(error, _BusyError) else 0.0)

        retrying = Retrying(
            retry=retry_if_exception_type((httpx.TransportError, _BusyError)),
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            reraise=True,
        )
        try:
            return retrying(request)
        except (httpx.TransportError, _BusyError) as e:
            raise UserError(
                f"{self.base_url}: {e or type(e).__name__}, {self.attempts} times in a row: "
                "run the same command again later, it goes on where it stopped"
            ) from e

    def _text(self, path: str) -> str | None:
        """A small file; None where the archive has none."""
        self.requests += 1
        response = self.client.get(f"{self.base_url}/{path}")
        return response.text if self._found(response) else None

    def _stream(self, path: str, part: Path, on_bytes: OnBytes) -> Literal["whole", "continued", "missing"]:
        """Complete `part`, going on at its end where the file on the server is still the same one."""
        validator = _validator(part)
        have = part.stat().st_size if part.exists() and validator.exists() else 0
        headers = {"Range": f"bytes={have}-", "If-Range": validator.read_text()} if have else {}
        self.requests += 1
        with self.client.stream("GET", f"{self.base_url}/{path}", headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                # All of it is there already, or more than there is: the checksum decides.
                return "continued"
            if not self._found(response):
                return "missing"
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                have = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                _forget(part)
                raise httpx.RemoteProtocolError("the server sent another part of the file than asked for")
            if have == 0:
                _remember(validator, response)
            length = response.headers.get("Content-Length")
            size = have + int(length) if length else None
            how: Literal["whole", "continued"] = "continued" if have else "whole"
            with part.open("ab" if have else "wb") as f:
                on_bytes(have, size)
                for chunk in response.iter_bytes():
                    f.write(chunk)
                    have += len(chunk)
                    on_bytes(have, size)
        return how

    def _found(self, response: httpx.Response) -> bool:
        """Whether there is such a file.

        Raises:
            _BusyError: come again later.
            UserError: any other refusal.
        """
        status = response.status_code
        if status == httpx.codes.NOT_FOUND:
            return False
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            wait = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            if wait > LONGEST_WAIT:
                raise UserError(
                    f"{response.url}: HTTP {status}, and asks to wait {wait:.0f} s: run the same command then"
                )
            raise _BusyError(status, wait)
        if not response.is_success:
            raise UserError(f"{response.url}: HTTP {status}: check --base-url and whether you may use it")
        return True


def _agrees(file: Path, checksum: str) -> bool:
    try:
        return sha256_of(file) == parse_checksum(checksum, file.name)
    except ValueError:
        return False


def _validator(part: Path) -> Path:
    """Beside a `.part` file: what `If-Range` takes, the strong ETag or else the time of the last change."""
    return part.with_name(part.name + ".etag")


def _remember(validator: Path, response: httpx.Response) -> None:
    etag = response.headers.get("ETag", "")
    text = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    if text:
        validator.write_text(text)
    else:
        validator.unlink(missing_ok=True)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def download(downloader: Downloader, paths: list[str], *, pause: float) -> Iterator[tuple[str, Outcome]]:
    """Fetch one file after the other, `pause` seconds after each that took a request, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[files]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number, path in enumerate(paths, start=1):
            name = path.rsplit("/", 1)[-1]
            task = progress.add_task(name, total=None, files=f"{number}/{len(paths)}")
            before = downloader.requests

            def show(done: int, size: int | None, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=size)

            outcome = downloader.fetch(path, show)
            progress.remove_task(task)
            yield path, outcome
            if downloader.requests > before and number < len(paths):
                time.sleep(pause)


def download_command(
    *,
    market: Annotated[Market, typer.Option(help="spot, um (USD-M futures), cm (COIN-M futures) or option")],
    kind: Annotated[
        list[str], typer.Option(help="trades, bookTicker, metrics, fundingRate, ...; repeatable")
    ],
    symbol: Annotated[list[str], typer.Option(help="as the exchange writes it, e.g. BTCUSDT; repeatable")],
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="first day, UTC")],
    end: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="last day, included; default: the first")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="folder; default: `archive` in the data folder", file_okay=False)
    ] = None,
    base_url: Annotated[
        str, typer.Option(envvar="MARKETPRISM_ARCHIVE_URL", help="root of the archive")
    ] = ARCHIVE_URL,
    pause: Annotated[float, typer.Option(min=0, help="seconds between two files")] = 0.5,
) -> None:
    """Download days of Binance's public archive, verified by their checksums. Run it again to go on."""
    if not base_url.startswith(("http://", "https://")):
        raise UserError(f"--base-url {base_url!r}: it must start with http:// or https://")
    folder = to if to is not None else settings().data_dir / "archive"
    last = min((end or start).date(), datetime.now(UTC).date())
    paths = [p for k in kind for s in symbol for p in archive_paths(market, k, s, start.date(), last)]
    found: dict[Outcome, list[str]] = {"downloaded": [], "present": [], "missing": [], "bad": []}
    with httpx.Client(
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(30.0),
        follow_redirects=True,
        limits=httpx.Limits(max_connections=1),
    ) as client:
        for path, outcome in download(Downloader(client, base_url.rstrip("/"), folder), paths, pause=pause):
            found[outcome].append(path)
    for path in found["missing"]:
        typer.echo(f"missing: {path}")
    for path in found["bad"]:
        typer.echo(f"wrong checksum, not kept: {path}")
    typer.echo(
        f"{len(found['downloaded'])} downloaded, {len(found['present'])} already there, "
        f"{len(found['missing'])} missing, {len(found['bad'])} with a wrong checksum, in {folder}"
    )
    if found["bad"] or not (found["downloaded"] or found["present"]):
        raise typer.Exit(1)
