"""Fits a model of any kind, evaluates it walk-forward, and exports it as an ONNX file with a card."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import orjson

from python_udfs.errors import UserError
from python_udfs.scorer.card import (
    CARD_FILE,
    EVALUATION_FILE,
    INPUT,
    ONNX_FILE,
    OUTPUT,
    Card,
    Column,
    FoldReport,
    Metrics,
    ModelType,
)
from python_udfs.settings import REPOSITORY
from python_udfs.training.baselines import Logistic, fit
from python_udfs.training.calibrate import Calibrator, Method
from python_udfs.training.dataset import Dataset
from python_udfs.training.explain import logistic_attributions, tree_attributions
from python_udfs.training.export import parity, parity_rows, to_onnx, write_folder
from python_udfs.training.metrics import direction, evaluate
from python_udfs.training.network_options import NetworkOptions
from python_udfs.training.normalise import TimeOfDay
from python_udfs.training.sequences import Sequences
from python_udfs.training.split import Fold, inner_folds, out_of_sample, tune, walk_forward

if TYPE_CHECKING:  # needs PyTorch
    from python_udfs.training.fit_network import Network
    from python_udfs.training.network_export import VariantReport

Floats = npt.NDArray[np.float64]
Inputs = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BASELINES: Final = (ModelType.LOGISTIC, ModelType.LIGHTGBM)
# Of the scores of a model or rule, the strongest fifth is traded.
TRADED_SHARE: Final = 0.2
_CUT_ROWS: Final = 1000
_BATCH: Final = 2048
# That the ranges of an 8-bit network are taken from.
_CALIBRATION_ROWS: Final = 500
_LIBRARIES: Final = ("scikit-learn", "lightgbm", "onnx", "onnxruntime", "onnxmltools", "skl2onnx", "numpy")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# What nested tuning chooses from, the defaults first.
SETTINGS: Final[dict[ModelType, tuple[dict[str, Any], ...]]] = {
    ModelType.LOGISTIC: ({}, {"C": 0.1}, {"C": 0.01}),
    ModelType.LIGHTGBM: ({}, {"num_leaves": 7, "min_data_in_leaf": 100}, {"num_leaves": 31}),
}
_OF_NETWORK: Final[tuple[dict[str, Any], ...]] = ({}, {"hidden": 16, "dropout": 0.3})


@dataclass(frozen=True, slots=True)
class Options:
    """How a ladder is evaluated and fitted. Folds: see `split.walk_forward`."""

    folds: int = 5
    first_train_share: float = 0.4
    embargo_s: float = 0.0
    rolling_share: float | None = (
        None  # of all rows: a fold trains on the newest so many; None: on all before it
    )
    calibrate: Method | None = None
    tune: bool = False  # choose among SETTINGS inside each fold
    # what the hour explains, as a fold's training rows have it, is taken out of a baseline's features
    time_of_day: bool = False
    network: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int = 7
    feature_vector_version: int = 1

    @property
    def embargo_us(self) -> int:
        return round(self.embargo_s * 1e6)


@dataclass(frozen=True, slots=True)
class Market:
    """The same labelled rows for every model: features for a baseline, the window that ends there for a network."""

    data: Dataset
    sequences: Sequences | None = None

    def __post_init__(self) -> None:
        s, d = self.sequences, self.data
        if s and not (
            np.array_equal(s.as_of, d.as_of)
            and s.instruments == d.instruments
            and np.array_equal(s.instrument, d.instrument)
        ):
            raise UserError(
                f"sequence_inputs and training_set hold other rows ({len(s.as_of):,} and {len(d.as_of):,}): "
                "run `make build`"
            )

    def of_network(self) -> Sequences:
        if self.sequences is None:
            raise UserError("a network needs sequence_inputs: run `make build`")
        return self.sequences

    def inputs(self, model: ModelType, rows: Rows) -> Inputs:
        """[len(rows), k] for a baseline, [len(rows), window, k] for a network."""
        return self.of_network().windows(rows) if model.is_network else self.data.features[rows]

    def contract(self, model: ModelType) -> list[Column]:
        return self.of_network().contract if model.is_network else self.data.contract

    def by_time_of_day(self, rows: Rows) -> Market:
        """The features without what the hour of the day explains of them on `rows`; networks read what they did."""
        data = self.data
        usual = TimeOfDay.fit(data.features[rows], data.as_of[rows])
        features = usual.transform(data.features, data.as_of).astype(np.float32)
        return replace(self, data=replace(data, features=features))

    def shuffled(self, seed: int) -> Market:
        """Labels and returns dealt anew over all rows: nothing can be learned, all else is as it was."""
        order = np.random.default_rng(seed).permutation(len(self.data.as_of))
        d = self.data
        weights = None if d.weights is None else d.weights[order]
        data = replace(d, classes=d.classes[order], returns=d.returns[order], weights=weights)
        s = self.sequences and replace(self.sequences, classes=data.classes, returns=data.returns)
        return Market(data, s)


@dataclass(frozen=True)
class Fitted:
    """A fitted model; `predict` and `export` are before calibration."""

    kind: ModelType
    classes: list[int]
    parameters: int
    predict: Callable[[Inputs], Floats]
    attributions: Callable[[Market, Rows], Floats]
    export: Callable[[], bytes]
    network: Network | None = None
    calibrator: Calibrator | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)  # what tuning chose in place of the defaults

    def probabilities(self, rows: Inputs) -> Floats:
        """[b, c] of the model's inputs [b, ...]."""
        said = self.predict(rows)
        return self.calibrator.transform(said) if self.calibrator else said

    def of_rows(self, market: Market, rows: Rows, classes: Sequence[int]) -> Floats:
        """[len(rows), c]; a class that the model has not seen has probability 0."""
        out = np.zeros((len(rows), len(classes)))
        at = [list(classes).index(name) for name in self.classes]
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            out[start : start + _BATCH, at] = self.probabilities(market.inputs(self.kind, some))
        return out

    def onnx(self) -> bytes:
        return self._calibrated(self.export())

    def smaller(self, windows: Inputs) -> dict[str, bytes]:
        """A network with half floats and with 8 bits inside, as ONNX. windows: training rows, for the ranges."""
        from python_udfs.training import network_export

        plain = self.export()
        files = {"fp16": network_export.to_fp16(plain), "int8": network_export.to_int8(plain, windows)}
        return {name: self._calibrated(onnx) for name, onnx in files.items()}

    def _calibrated(self, model: bytes) -> bytes:
        return self.calibrator.append_to(model) if self.calibrator else model


def fit_model(
    kind: ModelType,
    market: Market,
    rows: Rows,
    o: Options,
    *,
    teacher: Network | None = None,
    setting: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fits a model on these rows, and its calibration on rows that an earlier fit inside of them had not seen.

    Args:
        teacher: of a student, fitted on the same rows; None: one is fitted.
        setting: in place of the defaults; with o.tune it is chosen here.

    Raises:
        UserError: one class only, or too few rows.
    """
    setting = _tuned(kind, market, rows, o) if o.tune else setting or {}
    fitted = (
        _fit_network(kind, market, rows, o, teacher=teacher, setting=setting)
        if kind.is_network
        else _fit_baseline(kind, market, rows, o, setting)
    )
    if o.calibrate is None:
        return fitted
    data = market.data
    plain = replace(o, calibrate=None, tune=False)
    tested, said = out_of_sample(
        _inside(data, rows, o, folds=1, first_train_share=0.7),
        lambda train, test: fit_model(kind, market, train, plain, setting=setting).of_rows(
            market, test, fitted.classes
        ),
    )
    calibrator = Calibrator.fit(said, data.classes[tested], fitted.classes, o.calibrate)
    return replace(fitted, calibrator=calibrator)


def _inside(data: Dataset, rows: Rows, o: Options, *, folds: int, first_train_share: float) -> list[Fold]:
    """The same split, of training rows."""
    outer = Fold(rows, rows[:0], 0)
    return inner_folds(
        outer,
        data.as_of,
        data.known_at,
        folds=folds,
        first_train_share=first_train_share,
        embargo_us=o.embargo_us,
    )


def _tuned(kind: ModelType, market: Market, rows: Rows, o: Options) -> Mapping[str, Any]:
    """The setting with the least log loss out of sample, inside these training rows."""
    data, plain = market.data, replace(o, calibrate=None, tune=False)
    classes = [int(name) for name in np.unique(data.classes[rows])]

    def said(setting: Mapping[str, Any], train: Rows, test: Rows) -> Floats:
        return fit_model(kind, market, train, plain, setting=setting).of_rows(market, test, classes)

    def loss(tested: Rows, probabilities: Floats) -> float:
        true = probabilities[np.arange(len(tested)), np.searchsorted(classes, data.classes[tested])]
        return float(-np.log(np.maximum(true, 1e-12)).mean())

    inner = _inside(data, rows, o, folds=2, first_train_share=0.5)
    return tune(SETTINGS.get(kind, _OF_NETWORK), inner, said, loss)[0]


def _fit_baseline(
    kind: ModelType, market: Market, rows: Rows, o: Options, setting: Mapping[str, Any]
) -> Fitted:
    data = market.data
    weights = None if data.weights is None else data.weights[rows]
    model = fit(kind, data.features[rows], data.classes[rows], o.seed, weights=weights, **setting)
    if isinstance(model, Logistic):
        linear = model.pipeline[-1]
        parameters = int(linear.coef_.size + linear.intercept_.size)
    else:
        # thresholds and leaves
        parameters = sum(2 * tree["num_leaves"] - 1 for tree in model.booster.dump_model()["tree_info"])

    def attributions(of: Market, at: Rows) -> Floats:
        inputs = of.data.features[at]
        return (
            logistic_attributions(model, inputs)
            if isinstance(model, Logistic)
            else tree_attributions(model, inputs)
        )

    width = data.features.shape[1]
    return Fitted(
        kind,
        model.classes,
        parameters,
        model.probabilities,
        attributions,
        lambda: to_onnx(model, width),
        setting=setting,
    )


def _fit_network(
    kind: ModelType,
    market: Market,
    rows: Rows,
    o: Options,
    *,
    teacher: Network | None,
    setting: Mapping[str, Any],
) -> Fitted:
    # only here: PyTorch takes seconds, and baselines do not need it
    from python_udfs.training import network_export
    from python_udfs.training.fit_network import fit_network

    sequences, weights = market.of_network(), market.data.weights
    options = replace(o.network, embargo_us=o.embargo_us, **setting)
    if kind is ModelType.STUDENT and teacher is None:
        teacher = fit_network(
            ModelType.TEACHER, sequences, rows, seed=o.seed, options=options, weights=weights
        )
    network = fit_network(
        kind,
        sequences,
        rows,
        seed=o.seed,
        options=options,
        teacher=teacher if kind is ModelType.STUDENT else None,
        weights=weights,
    )
    return Fitted(
        kind,
        network.classes,
        network.parameters_count,
        network.predict,
        lambda of, at: network.attributions(of.of_network(), at),
        lambda: network_export.to_onnx(network),
        network,
        setting=setting,
    )


def fit_models(kinds: Sequence[ModelType], market: Market, rows: Rows, o: Options) -> dict[ModelType, Fitted]:
    """Each of these models on these rows; a student learns from the teacher that stands before it."""
    done: dict[ModelType, Fitted] = {}
    for kind in sorted(kinds, key=list(ModelType).index):
        teacher = done.get(ModelType.TEACHER)
        done[kind] = fit_model(kind, market, rows, o, teacher=teacher.network if teacher else None)
    return {kind: done[kind] for kind in kinds}


@dataclass(frozen=True, slots=True)
class OutOfSample:
    """What each fold's model said of its test rows, folds one after another. m test rows, c classes."""

    fold: npt.NDArray[np.int64]  # [m], from 1
    row: npt.NDArray[np.int64]  # [m], row of the dataset
    probabilities: npt.NDArray[np.float64]  # [m, c]
    prior: npt.NDArray[np.float64]  # [m, c], class shares of the rows that trained the fold's model
    cut: npt.NDArray[np.float64]  # [m], what |score| must exceed to be traded, of the fold's training rows


def strong(score: Floats) -> float:
    """What the absolute score must exceed to be among the strongest."""
    known = np.abs(score[np.isfinite(score)])
    return float(np.quantile(known, 1 - TRADED_SHARE)) if len(known) else np.inf


def cut_folds(data: Dataset, o: Options) -> list[Fold]:
    """The folds that every model shares."""
    rolling = None if o.rolling_share is None else round(o.rolling_share * len(data.as_of))
    return walk_forward(
        data.as_of,
        data.known_at,
        folds=o.folds,
        first_train_share=o.first_train_share,
        embargo_us=o.embargo_us,
        rolling_rows=rolling,
    )


def walk(
    kinds: Sequence[ModelType],
    market: Market,
    folds: list[Fold],
    classes: list[int],
    *,
    o: Options,
    say: Callable[[str], None] = lambda _: None,
    newest: dict[ModelType, Fitted] | None = None,
) -> dict[ModelType, OutOfSample]:
    """Fits the models once per fold on the fold's training rows and predicts its test rows.

    Args:
        newest: gets the models of the last fold.

    Raises:
        UserError: the training rows of a fold have one class only.
    """
    said: dict[ModelType, list[tuple[Floats, Floats]]] = {kind: [] for kind in kinds}
    for number, fold in enumerate(folds, 1):
        say(f"fold {number} of {len(folds)}: {len(fold.train):,} rows train, {len(fold.test):,} test")
        seen = market.by_time_of_day(fold.train) if o.time_of_day else market
        models = fit_models(kinds, seen, fold.train, o)
        for kind, fitted in models.items():
            cut = strong(direction(fitted.of_rows(seen, fold.train[-_CUT_ROWS:], classes), classes))
            said[kind].append((fitted.of_rows(seen, fold.test, classes), np.full(len(fold.test), cut)))
        if newest is not None:
            newest.update(models)
    labels = market.data.classes
    prior = [
        np.tile([(labels[fold.train] == name).mean() for name in classes], (len(fold.test), 1))
        for fold in folds
    ]
    number_of = np.concatenate([np.full(len(fold.test), number) for number, fold in enumerate(folds, 1)])
    row = np.concatenate([fold.test for fold in folds])
    return {
        kind: OutOfSample(
            number_of,
            row,
            np.concatenate([p for p, _ in parts]),
            np.concatenate(prior),
            np.concatenate([cut for _, cut in parts]),
        )
        for kind, parts in said.items()
    }


def classes_of(data: Dataset) -> list[int]:
    """The classes that the rows have, ascending."""
    return [int(name) for name in np.unique(data.classes)]


def block_seconds(data: Dataset) -> float:
    """Of a block of time that has an IC of its own: ten label horizons, one to ten minutes."""
    return float(np.clip(10 * np.median(data.known_at - data.as_of) / 1e6, 60, 600))


def metrics_of(data: Dataset, out: OutOfSample, chosen: npt.NDArray[np.bool_]) -> Metrics:
    """Of the chosen out-of-sample rows, at least one."""
    row = out.row[chosen]
    return evaluate(
        out.probabilities[chosen],
        out.prior[chosen],
        data.classes[row],
        data.returns[row],
        classes_of(data),
        as_of=data.as_of[row],
        block_s=block_seconds(data),
    )


def evaluate_folds(data: Dataset, out: OutOfSample) -> tuple[Metrics, list[Metrics]]:
    """Of all test rows, and of each fold's."""
    every = np.ones(len(out.row), dtype=np.bool_)
    return metrics_of(data, out, every), [metrics_of(data, out, out.fold == i) for i in np.unique(out.fold)]


def train(
    data: Dataset,
    model: ModelType,
    folder: Path,
    *,
    folds: int = 5,
    first_train_share: float = 0.4,
    embargo_s: float = 0.0,
    seed: int = 7,
    feature_vector_version: int = 1,
) -> Card:
    """Evaluates a baseline, refits it on every labelled row, exports, and writes `folder` (replacing what it held).

    Args:
        data: labelled rows.
        model: which baseline.
        folder: becomes model.onnx, card.json and evaluation.json; its name is the model's.
        folds, first_train_share, embargo_s: see `split.walk_forward`.
        seed: of everything random.
        feature_vector_version: of the public feature row that `data.contract` describes.

    Raises:
        UserError: too few rows, one class only, or an export that does not match the trained model.
    """
    o = Options(folds, first_train_share, embargo_s, seed=seed, feature_vector_version=feature_vector_version)
    market, steps = Market(data), cut_folds(data, o)
    out = walk([model], market, steps, classes_of(data), o=o)[model]
    fitted = fit_model(model, market, np.arange(len(data.as_of)), o)
    return save(folder, fitted, market=market, out=out, steps=steps, o=o)


def save(
    folder: Path,
    fitted: Fitted,
    *,
    market: Market,
    out: OutOfSample,
    steps: list[Fold],
    o: Options,
    metrics: tuple[Metrics, list[Metrics]] | None = None,
    more: Mapping[str, Any] | None = None,
    smaller: Mapping[str, VariantReport] | None = None,
) -> Card:
    """Exports a model that was fitted on all rows, with what `walk` said of its kind.

    Args:
        metrics: of `evaluate_folds`, where they are known already.
        more: goes into evaluation.json beside the rest.
        smaller: the variants to write beside it, each a folder with a card of its own, and what they lose.

    Raises:
        UserError: the export does not match the trained model; nothing is written.
    """
    data, kind = market.data, fitted.kind
    onnx = fitted.onnx()
    compared = _parity_inputs(kind, market.inputs(kind, steps[-1].test[-500:]))
    worst = parity(fitted, onnx, compared)
    digest = hashlib.sha256(onnx).hexdigest()
    contract = market.contract(kind)
    pooled, of_folds = metrics or evaluate_folds(data, out)
    libraries = (*_LIBRARIES, "torch") if kind.is_network else _LIBRARIES
    card = Card(
        name=folder.name,
        type=kind,
        version=digest[:12],
        onnx_sha256=digest,
        source="sequence_inputs" if kind.is_network else "feature_vector",
        feature_vector_version=1 if kind.is_network else o.feature_vector_version,
        window=market.of_network().window if kind.is_network else 1,
        features=[column.name for column in contract],
        contract=contract,
        classes=fitted.classes,
        label=data.label.column,
        label_return=data.label.return_column,
        horizon=data.label.horizon,
        embargo_s=o.embargo_s,
        training_rows=len(data.as_of),
        training_first_as_of=_time(data.as_of[0]),
        training_last_as_of=_time(data.as_of[-1]),
        instruments=data.instruments,
        pooled=pooled,
        folds=[
            FoldReport(
                fold=number,
                train_rows=len(step.train),
                purged_rows=step.purged,
                test_rows=len(step.test),
                test_first_as_of=_time(data.as_of[step.test[0]]),
                test_last_as_of=_time(data.as_of[step.test[-1]]),
                metrics=of_folds[number - 1],
            )
            for number, step in enumerate(steps, 1)
        ],
        parity_rows=len(compared),
        parity_max_abs_diff=worst,
        seed=o.seed,
        created_at=datetime.now(UTC),
        git_revision=git_revision(),
        libraries={name: version(name) for name in libraries},
    )
    evaluation = {"setting": dict(fitted.setting), **_evaluation(data, out, card), **(more or {})}
    files = _files(card, onnx, evaluation)
    if smaller:
        variants = fitted.smaller(market.inputs(kind, steps[-1].train[-_CALIBRATION_ROWS:]))
        for name, report in smaller.items():
            digest = hashlib.sha256(variants[name]).hexdigest()
            of_variant = card.model_copy(
                update={
                    "name": f"{card.name}-{name}",
                    "version": digest[:12],
                    "onnx_sha256": digest,
                    "parity_max_abs_diff": report.max_abs_diff,
                }
            )
            lost = {"variant_of": card.version, "size": report.size, "ic_loss": report.ic_loss}
            found = _files(of_variant, variants[name], {**evaluation, **lost, "name": of_variant.name})
            files |= {f"{name}/{file}": content for file, content in found.items()}
    write_folder(folder, files)
    return card


def _files(card: Card, onnx: bytes, evaluation: Mapping[str, Any]) -> dict[str, bytes]:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return {
        ONNX_FILE: onnx,
        CARD_FILE: card.model_dump_json(indent=2).encode() + b"\n",
        EVALUATION_FILE: orjson.dumps(evaluation, option=options),
    }


def _parity_inputs(kind: ModelType, real: Inputs) -> Inputs:
    if not kind.is_network:
        return parity_rows(real)
    from python_udfs.training.network_export import parity_windows

    return parity_windows(real)


def latency_ms(onnx: bytes, one: Inputs, calls: int = 300) -> tuple[float, float]:
    """Median and 99th percentile of one ORT run on one core. one: [1, ...], an input."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    took = []
    for _ in range(calls + 20):
        began = time.perf_counter()
        session.run([OUTPUT], {INPUT: one})
        took.append((time.perf_counter() - began) * 1e3)
    p50, p99 = np.quantile(took[20:], [0.5, 0.99])
    return float(p50), float(p99)


def git_revision() -> str | None:
    """The checked-out commit, with `+changes` where tracked files differ; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _evaluation(data: Dataset, out: OutOfSample, card: Card) -> dict[str, Any]:
    """What a report plots: one entry per out-of-sample row in each list of `rows`."""
    classes = classes_of(data)
    return {
        "name": card.name,
        "type": card.type,
        "version": card.version,
        "label": card.label,
        "label_return": card.label_return,
        "horizon": card.horizon,
        "classes": classes,
        "instruments": data.instruments,
        "pooled": card.pooled.model_dump(mode="json"),
        "folds": [fold.model_dump(mode="json") for fold in card.folds],
        "rows": {
            "fold": out.fold,
            "as_of_us": data.as_of[out.row],
            "instrument": data.instrument[out.row],
            "score": direction(out.probabilities, classes),
            "probabilities": out.probabilities.astype(np.float32),
            "label": data.classes[out.row],
            "label_return": data.returns[out.row],
        },
    }


def _time(microseconds: np.int64) -> datetime:
    return _EPOCH + timedelta(microseconds=int(microseconds))
