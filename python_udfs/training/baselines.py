"""The two baselines. Preprocessing is part of the model: fitted on its training rows only, exported with it.

Both take float32 rows [n, k] with NaN for missing values and return probabilities [n, c] in the order of
`classes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from python_udfs.errors import UserError
from python_udfs.scorer.card import ModelType

# More gain nothing up to some 100,000 rows and, on a busy machine, wait for each other for seconds.
_THREADS: Final = 1
_ROUNDS: Final = 80


class Baseline(Protocol):
    """A fitted model."""

    @property
    def classes(self) -> list[int]: ...

    def probabilities(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]: ...


class Winsorizer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """Clips each column to two quantiles of its training rows: no wild value carries a linear model away."""

    def __init__(self, tail: float = 0.005) -> None:
        self.tail = tail

    def fit(self, rows: npt.NDArray[np.float64], _labels: object = None) -> Self:
        """rows: [n, k] without NaN."""
        self.low_, self.high_ = np.quantile(rows, [self.tail, 1 - self.tail], axis=0)
        self.n_features_in_ = rows.shape[1]
        return self

    def transform(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """rows: [n, k] without NaN."""
        return np.clip(rows, self.low_, self.high_)


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression on imputed (median), winsorized, standardised inputs."""

    pipeline: Pipeline

    @property
    def classes(self) -> list[int]:
        return [int(name) for name in self.pipeline.classes_]

    def probabilities(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.asarray(self.pipeline.predict_proba(rows.astype(np.float64)))


@dataclass(frozen=True)
class Trees:
    """Small gradient-boosted trees. A missing value goes down the side that the training rows taught."""

    booster: lgb.Booster
    classes: list[int]

    def probabilities(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.asarray(self.booster.predict(rows, num_threads=_THREADS)).reshape(
            len(rows), len(self.classes)
        )


def fit(
    model: ModelType,
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    seed: int,
    *,
    weights: npt.NDArray[np.float64] | None = None,
    **parameters: float,
) -> Logistic | Trees:
    """Fits a baseline. The same rows and seed give the same model.

    Args:
        model: which one.
        rows: [n, k], NaN for missing.
        labels: [n].
        seed: of everything random.
        weights: [n], how much a row counts; None: all alike.
        parameters: of the library, in place of the defaults.

    Raises:
        UserError: the rows have one class only.
    """
    classes = [int(name) for name in np.unique(labels)]
    if len(classes) < 2:
        raise UserError(
            f"all {len(labels)} training rows have the class {classes[0]}: nothing to learn. "
            "Choose another label or horizon, ingest more data, or use fewer folds"
        )
    return (
        _fit_logistic(rows, labels, seed, weights, parameters)
        if model is ModelType.LOGISTIC
        else _fit_trees(rows, labels, seed, weights, parameters)
    )


def _fit_logistic(
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    seed: int,
    weights: npt.NDArray[np.float64] | None,
    parameters: Mapping[str, float],
) -> Logistic:
    pipeline = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        Winsorizer(),
        StandardScaler(),
        LogisticRegression(max_iter=1000, random_state=seed, **parameters),
    )
    pipeline.fit(rows.astype(np.float64), labels, logisticregression__sample_weight=weights)
    return Logistic(pipeline)


def _fit_trees(
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    seed: int,
    weights: npt.NDArray[np.float64] | None,
    parameters: Mapping[str, float],
) -> Trees:
    classes = [int(name) for name in np.unique(labels)]
    of_library: dict[str, Any] = {
        "objective": "multiclass",
        "num_class": len(classes),
        "num_leaves": 15,
        "learning_rate": 0.05,
        "min_data_in_leaf": 50,
        "lambda_l2": 1.0,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "num_threads": _THREADS,
        "verbosity": -1,
        **parameters,
    }
    data = lgb.Dataset(rows, np.searchsorted(classes, labels), weight=weights)
    return Trees(_snap_to_float32(lgb.train(of_library, data, num_boost_round=_ROUNDS)), classes)


def _snap_to_float32(booster: lgb.Booster) -> lgb.Booster:
    """The same trees with each threshold lowered to the nearest float32.

    The inputs are float32, so that no decision changes. ONNX keeps thresholds as float32 and would round some
    of them up, past a value that belongs to the other side.
    """

    def snapped(line: re.Match[str]) -> str:
        exact = np.array(line[1].split(), dtype=np.float64)
        near = exact.astype(np.float32)
        near = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
        return "threshold=" + " ".join(repr(float(x)) for x in near)

    text = re.sub(r"^threshold=(.+)$", snapped, booster.model_to_string(), flags=re.MULTILINE)
    # LightGBM reads the trees by these byte lengths where they are given
    return lgb.Booster(model_str=re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE))
