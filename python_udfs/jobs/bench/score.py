"""Latency of the score path: baseline and student, beside ONNX Runtime alone and Feast's online read alone.

The public relations are made here as dbt makes them (columns of their contracts, layout of their models) and hold numbers
that a hash decides: time depends on how many rows and columns there are, not on what they say. Nor do the weights matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml
from clickhouse_driver import Client
from rich.console import Console
from rich.table import Table

from python_udfs import db
from python_udfs.errors import UserError
from python_udfs.jobs.bench.environment import run_peer
from python_udfs.jobs.bench.figures import Aim, Floats, percentiles, ratio, timed, times
from python_udfs.scorer.card import (
    CARD_FILE,
    INPUT,
    KEYS,
    ONNX_FILE,
    OUTPUT,
    Card,
    Column,
    ModelType,
    live_columns,
    save_model,
)
from python_udfs.scorer.scorer import Instrument, Scorer
from python_udfs.settings import REPOSITORY, settings

Source = Literal["feature_vector", "sequence_inputs"]

BATCHES: Final = (1, 16, 64)
_BUCKET_S: Final = 10
_HISTORY: Final = 2000  # buckets of each instrument before the first call
_LIMIT_MS: Final = {"baseline": 20.0, "student": 50.0}  # p99, end to end


@dataclass
class Feed:
    """A relation that gets a new bucket of every instrument when asked: a score call seldom sees an old one."""

    client: Client
    table: str
    columns: list[Column]
    instruments: int
    first: datetime
    count: int = field(default=0)

    def create(self, history: int) -> None:
        names = ", ".join(f"`{c.name}` {c.type}" for c in self.columns)
        self.client.execute(f"drop table if exists {self.table} sync")
        # as the models say: bucket_grain, and the settings at the top of both
        self.client.execute(
            f"create table {self.table} ({names}) engine = MergeTree partition by toYYYYMMDD(bucket_ts_start) "
            "order by (exchange, market_type, symbol, bucket_id) settings index_granularity = 256, "
            "min_compress_block_size = 1024, max_compress_block_size = 4096"
        )
        self.more(history)

    def more(self, buckets: int = 1) -> None:
        start = int(self.first.timestamp())
        # bucket_id restarts at every hour; n counts buckets, i instruments
        at = f"toUInt64({start} + n * {_BUCKET_S})"
        keys = {
            "exchange": "'bench'",
            "market_type": "'spot'",
            "symbol": "concat('S', leftPad(toString(i), 3, '0'))",
            "bucket_id": f"intDiv({at}, 3600) * 3600 * 100000 + intDiv({at} % 3600, {_BUCKET_S})",
            "bucket_ts_start": f"fromUnixTimestamp64Micro(toInt64({at}) * 1000000, 'UTC')",
            "bucket_ts_end": f"fromUnixTimestamp64Micro(toInt64({at} + {_BUCKET_S}) * 1000000, 'UTC')",
        }
        values = ", ".join(f"{keys.get(c.name) or _made_up(c)} as `{c.name}`" for c in self.columns)
        self.client.execute(
            f"insert into {self.table} ({db.names([c.name for c in self.columns])}) with "
            f"toUInt64({self.count} + intDiv(number, {self.instruments})) as n, number % {self.instruments} as i "
            f"select {values} from numbers({buckets * self.instruments})"
        )
        self.count += buckets


def _made_up(column: Column) -> str:
    kind = column.type.removeprefix("Nullable(").removesuffix(")")
    return f"to{kind.split('(')[0]}(sipHash64(n, i, {db.quote(column.name)}) % 1000 / 7)"


def contract(model: str, version: int) -> list[Column]:
    """The columns of a version of a public relation, from its yml."""
    path = REPOSITORY / "dbt_project" / "models" / "serving" / f"{model}.yml"
    [of] = [m for m in yaml.safe_load(path.read_text())["models"] if m["name"] == model]
    [this] = [v for v in of["versions"] if v["v"] == version]
    only = next((c["include"] for c in this.get("columns", []) if isinstance(c.get("include"), list)), None)
    return [
        Column(name=c["name"], type=c["data_type"])
        for c in of["columns"]
        if only is None or c["name"] in only
    ]


def _baseline(folder: Path, live: Sequence[Column]) -> None:
    from python_udfs.training.baselines import fit
    from python_udfs.training.dataset import DEFAULT_FEATURES, choose_features
    from python_udfs.training.export import to_onnx

    columns = choose_features(DEFAULT_FEATURES, live, 1)
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(1000, len(columns))).astype(np.float32)
    labels = rng.integers(-1, 2, len(rows)).astype(np.int8)
    onnx = to_onnx(fit(ModelType.LOGISTIC, rows, labels, seed=4), len(columns))
    save_model(folder, Card.unjudged(onnx, columns, name=folder.name), onnx)


def _student(folder: Path, live: Sequence[Column]) -> None:
    """The student's network at the size that training gives it. Raises UserError where PyTorch is not installed."""
    from python_udfs.training.pytorch import torch  # isort: skip
    from python_udfs.training.fit_network import Network
    from python_udfs.training.network_export import to_onnx
    from python_udfs.training.network_options import NetworkOptions
    from python_udfs.training.networks import Normalise, build
    from python_udfs.training.sequences import WINDOW

    columns = [c for c in live if c.name not in KEYS]
    names = [c.name for c in columns]
    torch.manual_seed(4)
    rows = np.random.default_rng(4).normal(70, 40, size=(1000, len(names))).astype(np.float32)
    options = NetworkOptions()
    module = build(
        ModelType.STUDENT,
        names,
        Normalise.fitted(rows),
        window=WINDOW,
        hidden=options.hidden,
        classes=3,
        dropout=options.dropout,
    )
    network = Network(
        kind=ModelType.STUDENT, module=module, classes=[-1, 0, 1], names=names, window=WINDOW, losses=[]
    )
    onnx = to_onnx(network)
    kind: dict[str, Any] = {"type": ModelType.STUDENT, "source": "sequence_inputs", "window": WINDOW}
    save_model(folder, Card.unjudged(onnx, columns, name=folder.name, **kind), onnx)


_MODELS: Final = {
    "baseline": ("feature_vector", _baseline),
    "student": ("sequence_inputs", _student),
}


def _bare(folder: Path, batch: int, calls: int) -> Floats:
    """ONNX Runtime and nothing else, on ready inputs."""
    import onnxruntime as ort

    card = Card.model_validate_json((folder / CARD_FILE).read_text())
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        (folder / ONNX_FILE).read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    k = len(card.features)
    shape = (batch, k) if card.window == 1 else (batch, card.window, k)
    inputs = np.random.default_rng(4).normal(70, 40, size=shape).astype(np.float32)
    return timed(lambda: session.run([OUTPUT], {INPUT: inputs}), calls)


def _measure(folder: Path, feed: Feed, calls: int) -> dict[int, dict[str, Floats]]:
    """Milliseconds by batch: ONNX Runtime alone, the read alone, and everything."""
    every = [Instrument("bench", "spot", f"S{i:03d}") for i in range(feed.instruments)]
    found = {}
    # rows of the past are what the feed makes
    with Scorer(folder, max_age_s=1e9) as scorer:
        for batch in BATCHES:
            some = every[:batch]
            found[batch] = {
                "ort": _bare(folder, batch, calls),
                "read": timed(lambda some=some: scorer.read_latest(some), calls, before=feed.more),  # type: ignore[misc]
                "all": timed(lambda some=some: scorer.score(some), calls, before=feed.more),  # type: ignore[misc]
            }
    return found


def score(console: Console, calls: int, peers: Path | None) -> Iterator[Table | str | Aim]:
    """The table, remarks and aims of this part. peers: the interpreter with Feast; None: there is none."""
    from python_udfs.migrate import migrate

    migrate()
    database = settings().database("features")
    instruments = max(BATCHES)
    aims: list[Aim] = []
    remarks: list[str] = []
    table = Table(title=f"score path, ms, {calls} calls each")
    for column in ("model", "batch", "what", "p50", "p99", "p50 / ORT", "p50 / Feast"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    with db.connect(database) as c, tempfile.TemporaryDirectory(prefix="marketprism-bench-") as scratch:
        for name, (source, make) in _MODELS.items():
            worst: float | None = None
            with console.status(f"score: {name}") as status:
                bound = percentiles(timed(lambda: c.execute("select 1"), calls))
                remarks.append(f"SELECT 1 before {name}: p50 {bound[0]:.2f} ms, p99 {bound[1]:.2f} ms.")
                columns = contract(source, 1)
                # all calls' buckets end before now
                calls_ahead = _HISTORY + 2 * len(BATCHES) * (calls + 10) + 10
                first = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=_BUCKET_S * calls_ahead)
                first -= timedelta(seconds=first.timestamp() % _BUCKET_S)
                feed = Feed(c, f"{source}_v1", columns, instruments, first)
                feed.create(_HISTORY)
                folder = Path(scratch, name)
                try:
                    make(folder, live_columns(c, 1, source))
                except UserError as e:
                    remarks.append(f"{name}: {e}")
                    aims.append(_aim(name, None))
                    continue
                found = _measure(folder, feed, calls)
                card = Card.model_validate_json((folder / CARD_FILE).read_text())
                status.update(f"score: Feast's online read of {len(card.features)} features")
                feast: dict[str, Any] = {}
                if peers is not None:
                    try:
                        feast = run_peer(
                            peers, "online", scratch, "--features", str(len(card.features)), "--calls", str(calls),
                            "--batches", ",".join(map(str, BATCHES)), "--instruments", str(instruments),
                        )["ms"]  # fmt: skip
                    except UserError as e:
                        remarks.append(str(e))
            for batch, ms in found.items():
                theirs = np.asarray(feast.get(str(batch), []), dtype=np.float64)
                ort, peer = percentiles(ms["ort"])[0], percentiles(theirs)[0]
                rows = [("ORT alone", ms["ort"])]
                if theirs.size:
                    rows.append(("Feast read", theirs))
                rows += [("our read", ms["read"]), ("end to end", ms["all"])]
                for i, (what, values) in enumerate(rows):
                    p50, p99 = percentiles(values)
                    table.add_row(
                        name if i == 0 else "", str(batch) if i == 0 else "", what, f"{p50:.2f}", f"{p99:.2f}",
                        times(ratio(p50, ort)), times(ratio(p50, peer)),
                        end_section=i == len(rows) - 1,
                    )  # fmt: skip
                worst = max(worst or 0.0, percentiles(ms["all"])[1])
            remarks.append(
                f"{name}: {len(card.features)} features of the last {card.window} buckets, "
                f"{feed.count * instruments:,} rows of {len(columns)} columns in {feed.table}."
            )
            aims.append(_aim(name, worst))
    yield table
    yield from remarks
    yield (
        "End to end: read, score, store. Each of ours finds a new bucket of every instrument. Feast: get_online_features "
        "of as many features from SQLite on the same disk, its registry cached; of one row, since it keeps no windows."
    )
    yield from aims


def _aim(name: str, p99: float | None) -> Aim:
    return Aim(
        f"{name} end to end, p99 at the worst of batch {', '.join(map(str, BATCHES))}",
        _LIMIT_MS[name],
        "ms",
        p99,
    )
