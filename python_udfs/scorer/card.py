"""The model card: what a model was trained on and what it needs. The scorer holds it to that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, Self

from clickhouse_driver import Client
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from python_udfs.errors import UserError
from python_udfs.settings import settings

ONNX_FILE: Final = "model.onnx"
CARD_FILE: Final = "card.json"
EVALUATION_FILE: Final = "evaluation.json"
INPUT: Final = "features"
OUTPUT: Final = "probabilities"
# What names a row of feature_vector: never an input of a model.
KEYS: Final = ("exchange", "market_type", "symbol", "bucket_id", "bucket_ts_start", "bucket_ts_end")


class ModelType(StrEnum):
    """The models there are: two baselines of one row, and networks of a window of rows."""

    LOGISTIC = "logistic"
    LIGHTGBM = "lightgbm"
    DEEPLOB_TCN = "deeplob_tcn"
    TEACHER = "teacher"
    STUDENT = "student"
    MIXTURE = "mixture"

    @property
    def is_network(self) -> bool:
        return self not in (ModelType.LOGISTIC, ModelType.LIGHTGBM)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Frozen):
    """A column of the public feature row and its ClickHouse type."""

    name: str
    type: str

    def __str__(self) -> str:
        return f"{self.name} {self.type}"


class CalibrationBin(_Frozen):
    """One of equally full bins of predicted probability: what was said and what came."""

    predicted: float
    observed: float
    n: int


class Metrics(_Frozen):
    """Out-of-sample quality. Keys of the dicts are classes ("-1", "0", "1"); None where it is not defined."""

    rows: int
    log_loss: float
    prior_log_loss: float  # of always saying the class shares of the training rows
    accuracy: float
    balanced_accuracy: float
    brier: float  # squared error summed over the classes, mean over the rows
    ic: float | None  # Spearman rank correlation of P(up) - P(down) with the label's return
    auc: dict[str, float | None]  # one class against the rest
    class_shares: dict[str, float]
    calibration: dict[str, list[CalibrationBin]]
    ic_pearson: float | None = None
    hit_rate: float | None = None  # share of scores with the return's sign, where neither is zero
    ece: float | None = None  # expected calibration error of the most probable class
    # with times: 95 % intervals by block bootstrap, and the mean over the deviation of the blocks' ICs
    ic_low: float | None = None
    ic_high: float | None = None
    ic_ir: float | None = None
    ic_ir_low: float | None = None
    ic_ir_high: float | None = None
    ic_blocks: int | None = None  # blocks of time that have an IC


class FoldReport(_Frozen):
    """One step of the walk-forward: where it was cut, what purging and embargo took, and how it went."""

    fold: int
    train_rows: int
    purged_rows: int
    test_rows: int
    test_first_as_of: datetime
    test_last_as_of: datetime
    metrics: Metrics


class Card(_Frozen):
    """Everything the scorer checks and a reader asks. `features` is the order of the model's inputs."""

    card_format: Literal[1] = 1
    name: str
    type: ModelType
    version: str  # the first 12 hex digits of onnx_sha256
    onnx_sha256: str
    source: Literal["feature_vector", "sequence_inputs"] = "feature_vector"
    feature_vector_version: int  # of `source`
    window: int = Field(default=1, ge=1)  # rows of one input, the latest last; 1: the input has no time axis
    features: list[str]
    contract: list[Column]
    classes: list[int]  # the order of the output probabilities
    confidence: float | None = Field(
        default=None, ge=0, le=1
    )  # least probability of a signal; None: the setting
    label: str
    label_return: str
    horizon: str
    embargo_s: float
    training_rows: int
    training_first_as_of: datetime
    training_last_as_of: datetime
    instruments: list[str]
    pooled: Metrics
    folds: list[FoldReport]
    parity_rows: int
    parity_max_abs_diff: float  # ONNX against the framework, in probability
    seed: int
    created_at: datetime
    git_revision: str | None
    libraries: dict[str, str]

    @classmethod
    def unjudged(cls, onnx: bytes, columns: Sequence[Column], /, **said: Any) -> Self:
        """The card of a model made to measure or to test with: of its training and its quality it says nothing.

        said: fields that say something after all; `name` is one of them.
        """
        digest, now = hashlib.sha256(onnx).hexdigest(), said.get("created_at", datetime.now(UTC))
        nothing = Metrics(
            rows=0, log_loss=0, prior_log_loss=0, accuracy=0, balanced_accuracy=0, brier=0, ic=None, auc={},
            class_shares={}, calibration={},
        )  # fmt: skip
        values: dict[str, Any] = {
            "type": ModelType.LOGISTIC,
            "version": digest[:12],
            "onnx_sha256": digest,
            "feature_vector_version": 1,
            "features": [column.name for column in columns],
            "contract": list(columns),
            "classes": [-1, 0, 1],
            "label": "label_cls_3",
            "label_return": "label_ret_ps_3",
            "horizon": "3 buckets",
            "embargo_s": 0,
            "training_rows": 0,
            "training_first_as_of": now,
            "training_last_as_of": now,
            "instruments": [],
            "pooled": nothing,
            "folds": [],
            "parity_rows": 0,
            "parity_max_abs_diff": 0,
            "seed": 0,
            "created_at": now,
            "git_revision": None,
            "libraries": {},
        }
        return cls(**(values | said))

    @property
    def table(self) -> str:
        """The public relation that the model reads."""
        return f"{self.source}_v{self.feature_vector_version}"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.features != [column.name for column in self.contract]:
            raise ValueError("`features` and the names in `contract` differ or are in another order")
        if self.version != self.onnx_sha256[:12]:
            raise ValueError("`version` is not the start of `onnx_sha256`")
        return self


def save_model(folder: Path, card: Card, onnx: bytes) -> None:
    """Writes what `load_model` reads; the folder may be there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ONNX_FILE).write_bytes(onnx)
    (folder / CARD_FILE).write_text(card.model_dump_json())


def load_model(folder: Path) -> tuple[Card, bytes]:
    """The card and the ONNX bytes of a model folder, seen to belong together.

    Raises:
        UserError: no such model, an unreadable card, or an ONNX file that is not the card's.
    """
    try:
        text = (folder / CARD_FILE).read_text()
        onnx = (folder / ONNX_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(f"no model in {folder}: {e.filename} is missing. Run `marketprism train`") from e
    try:
        card = Card.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        raise UserError(f"{folder / CARD_FILE} [{where}]: {first['msg']}. Train the model again") from e
    found = hashlib.sha256(onnx).hexdigest()
    if found != card.onnx_sha256:
        raise UserError(
            f"{folder / ONNX_FILE} is not the file its card describes: sha256 {found[:12]}…, the card says "
            f"{card.onnx_sha256[:12]}…. Restore both from one training run, or train again"
        )
    return card, onnx


def live_columns(c: Client, version: int, source: str = "feature_vector") -> list[Column]:
    """All columns of <source>_v<version> in the order of the table.

    Raises:
        UserError: there is no such version; the message names those there are.
    """
    database, table = settings().database("features"), f"{source}_v{version}"
    found = c.execute(
        "select name, type from system.columns where database = %(d)s and table = %(t)s order by position",
        {"d": database, "t": table},
    )
    if not found:
        others = c.execute(
            "select name from system.tables "
            "where database = %(d)s and match(name, concat('^', %(s)s, '_v[0-9]+$')) order by name",
            {"d": database, "s": source},
        )
        there = f"there is {', '.join(name for (name,) in others)}" if others else "run `make build`"
        raise UserError(f"{database} has no {table}: {there}")
    return [Column(name=name, type=type_) for name, type_ in found]


def contract_differences(card: Card, live: Sequence[Column]) -> list[str]:
    """How the live feature row differs from the one the model was trained on; empty when it does not.

    Columns that the model does not use may come, go and change: they are nothing to it.
    """
    types = {column.name: column.type for column in live}
    differences = [f"{column} is missing" for column in card.contract if column.name not in types]
    differences += [
        f"{column.name} is {types[column.name]}, was {column.type}"
        for column in card.contract
        if types.get(column.name, column.type) != column.type
    ]
    present = set(card.features) & types.keys()
    order = [name for name in types if name in present]
    trained = [name for name in card.features if name in present]
    if order != trained:
        moved = [f"{new} where {old} was" for old, new in zip(trained, order, strict=True) if new != old]
        differences.append(f"the order changed: {', '.join(moved)}")
    return differences


def check_contract(c: Client, card: Card) -> None:
    """Compares the card with the live feature row.

    Raises:
        UserError: the version is not there, or columns differ in name, type or order; the message names them.
    """
    differences = contract_differences(card, live_columns(c, card.feature_vector_version, card.source))
    if differences:
        raise UserError(
            f"model {card.name} {card.version} does not fit {card.table}: "
            f"{'; '.join(differences)}. Train it again, or publish the change as a new version"
        )
