"""Trains a baseline: walk-forward evaluation, a last fit on all rows, an ONNX file with a card."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from python_udfs.scorer.card import (
    CARD_FILE,
    EVALUATION_FILE,
    ONNX_FILE,
    Card,
    FoldReport,
    Metrics,
    ModelType,
)
from python_udfs.settings import REPOSITORY
from python_udfs.training.baselines import fit
from python_udfs.training.dataset import Dataset
from python_udfs.training.export import parity, parity_rows, to_onnx, write_folder
from python_udfs.training.metrics import direction, evaluate
from python_udfs.training.split import Fold, walk_forward

_LIBRARIES: Final = ("scikit-learn", "lightgbm", "onnx", "onnxruntime", "onnxmltools", "skl2onnx", "numpy")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OutOfSample:
    """What each fold's model said of its test rows, folds one after another. m test rows, c classes."""

    fold: npt.NDArray[np.int64]  # [m], from 1
    row: npt.NDArray[np.int64]  # [m], row of the dataset
    probabilities: npt.NDArray[np.float64]  # [m, c]
    prior: npt.NDArray[np.float64]  # [m, c], class shares of the rows that trained the fold's model


def walk(data: Dataset, model: ModelType, folds: list[Fold], classes: list[int], seed: int) -> OutOfSample:
    """Fits the model once per fold on the fold's training rows and predicts its test rows.

    Raises:
        UserError: the training rows of a fold have one class only.
    """
    probabilities, prior = [], []
    for fold in folds:
        labels = data.classes[fold.train]
        fitted = fit(model, data.features[fold.train], labels, seed)
        out = np.zeros((len(fold.test), len(classes)))
        # a class that has not been seen yet has probability 0
        out[:, [classes.index(name) for name in fitted.classes]] = fitted.probabilities(
            data.features[fold.test]
        )
        probabilities.append(out)
        prior.append(np.tile([(labels == name).mean() for name in classes], (len(fold.test), 1)))
    return OutOfSample(
        fold=np.concatenate([np.full(len(fold.test), number) for number, fold in enumerate(folds, 1)]),
        row=np.concatenate([fold.test for fold in folds]),
        probabilities=np.concatenate(probabilities),
        prior=np.concatenate(prior),
    )


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
    """Evaluates, refits on every labelled row, exports, and writes `folder` (replacing what it held).

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
    steps = walk_forward(
        data.as_of,
        data.known_at,
        folds=folds,
        first_train_share=first_train_share,
        embargo_us=round(embargo_s * 1e6),
    )
    final = fit(model, data.features, data.classes, seed)
    out = walk(data, model, steps, final.classes, seed)
    onnx = to_onnx(final, data.features.shape[1])
    compared = parity_rows(data.features[steps[-1].test])
    digest = hashlib.sha256(onnx).hexdigest()
    card = Card(
        name=folder.name,
        type=model,
        version=digest[:12],
        onnx_sha256=digest,
        feature_vector_version=feature_vector_version,
        features=[column.name for column in data.contract],
        contract=data.contract,
        classes=final.classes,
        label=data.label.column,
        label_return=data.label.return_column,
        horizon=data.label.horizon,
        embargo_s=embargo_s,
        training_rows=len(data.as_of),
        training_first_as_of=_time(data.as_of[0]),
        training_last_as_of=_time(data.as_of[-1]),
        instruments=data.instruments,
        pooled=_metrics(data, out, final.classes, np.ones(len(out.row), dtype=np.bool_)),
        folds=[
            FoldReport(
                fold=number,
                train_rows=len(step.train),
                purged_rows=step.purged,
                test_rows=len(step.test),
                test_first_as_of=_time(data.as_of[step.test[0]]),
                test_last_as_of=_time(data.as_of[step.test[-1]]),
                metrics=_metrics(data, out, final.classes, out.fold == number),
            )
            for number, step in enumerate(steps, 1)
        ],
        parity_rows=len(compared),
        parity_max_abs_diff=parity(final, onnx, compared),
        seed=seed,
        created_at=datetime.now(UTC),
        git_revision=git_revision(),
        libraries={name: version(name) for name in _LIBRARIES},
    )
    write_folder(
        folder,
        {
            ONNX_FILE: onnx,
            CARD_FILE: card.model_dump_json(indent=2).encode() + b"\n",
            EVALUATION_FILE: orjson.dumps(_evaluation(data, out, card), option=orjson.OPT_SERIALIZE_NUMPY),
        },
    )
    return card


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


def _metrics(data: Dataset, out: OutOfSample, classes: list[int], chosen: npt.NDArray[np.bool_]) -> Metrics:
    row = out.row[chosen]
    return evaluate(
        out.probabilities[chosen], out.prior[chosen], data.classes[row], data.returns[row], classes
    )


def _evaluation(data: Dataset, out: OutOfSample, card: Card) -> dict[str, Any]:
    """What a report plots: one entry per out-of-sample row in each list of `rows`."""
    return {
        "name": card.name,
        "type": card.type,
        "version": card.version,
        "label": card.label,
        "label_return": card.label_return,
        "horizon": card.horizon,
        "classes": card.classes,
        "instruments": data.instruments,
        "pooled": card.pooled.model_dump(mode="json"),
        "folds": [fold.model_dump(mode="json") for fold in card.folds],
        "rows": {
            "fold": out.fold,
            "as_of_us": data.as_of[out.row],
            "instrument": data.instrument[out.row],
            "score": direction(out.probabilities, card.classes),
            "probabilities": out.probabilities.astype(np.float32),
            "label": data.classes[out.row],
            "label_return": data.returns[out.row],
        },
    }


def _time(microseconds: np.int64) -> datetime:
    return _EPOCH + timedelta(microseconds=int(microseconds))
