"""Calibration of class probabilities: isotonic or Platt, one class against the rest, made to sum to 1 again.

Fit it on predictions of rows that the model has not seen (`split.inner_folds`, `split.out_of_sample`), all of them
inside the training fold.

References: J. Platt (1999), Probabilistic outputs for support vector machines; B. Zadrozny and C. Elkan (2002),
Transforming classifier scores into accurate multiclass probability estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from python_udfs.errors import UserError
from python_udfs.scorer.card import OUTPUT

Floats = npt.NDArray[np.float64]

_STEPS: Final = 256
_EDGE: Final = 1e-6  # probabilities nearer to 0 or 1 count as this near


class Method(StrEnum):
    ISOTONIC = "isotonic"
    PLATT = "platt"


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A fitted calibration of c classes.

    `constants`: isotonic: [c, 257], the calibrated value at each 256th of a probability, straight lines between them (so
    that float32 and float64 agree: a raw isotonic fit has vertical steps). Platt: [c, 2], slope and intercept on
    the log odds.
    """

    method: Method
    constants: Floats

    @classmethod
    def fit(
        cls, probabilities: Floats, labels: npt.NDArray[np.int8], classes: Sequence[int], method: Method
    ) -> Self:
        """Fits on out-of-sample predictions of training rows.

        A class that none or all of the rows have keeps its probability. Where Platt finds probabilities that rank the
        wrong way round, the class gets its share: a sign is not a matter of calibration.

        Args:
            probabilities: [n, c], columns in the order of `classes`.
            labels: [n], each one of `classes`.

        Raises:
            UserError: there are no rows.
        """
        if not len(labels):
            raise UserError("no out-of-sample row to calibrate on: use fewer inner folds or more data")
        truth = labels[:, None] == np.asarray(classes)[None, :]
        fit_class = _isotonic if method is Method.ISOTONIC else _platt
        return cls(method, np.stack([fit_class(p, t) for p, t in zip(probabilities.T, truth.T, strict=True)]))

    def transform(self, probabilities: Floats) -> Floats:
        """Calibrated probabilities, [n, c] like the given ones. A row that every class denies stays as it was."""
        p = np.asarray(probabilities, dtype=np.float64)
        if self.method is Method.ISOTONIC:
            low = np.clip(np.floor(p * _STEPS), 0, _STEPS - 1).astype(np.int64)
            of_class = np.arange(p.shape[1])
            left, right = self.constants[of_class, low], self.constants[of_class, low + 1]
            out = left + (p * _STEPS - low) * (right - left)
        else:
            out = 1 / (1 + np.exp(-(self.constants[:, 0] * _log_odds(p) + self.constants[:, 1])))
        total = out.sum(axis=1, keepdims=True)
        return np.where(total > 0, out / np.where(total > 0, total, 1), p)

    def to_constants(self) -> dict[str, object]:
        """What the calibration is, for a card or a file; `Calibrator.from_constants` reads it."""
        return {"method": self.method.value, "constants": self.constants.tolist()}

    @classmethod
    def from_constants(cls, constants: dict[str, object]) -> Self:
        """The calibration that `to_constants` wrote."""
        return cls(Method(str(constants["method"])), np.array(constants["constants"], dtype=np.float64))

    def append_to(self, model: bytes) -> bytes:
        """The ONNX model with this calibration between it and its output `probabilities` [b, c].

        Of operators that mean the same in every opset since 9, the one that LightGBM models come in.
        """
        proto = onnx.load_from_string(model)
        for node in proto.graph.node:
            for i, output in enumerate(node.output):
                if output == OUTPUT:
                    node.output[i] = "uncalibrated"
        values: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]
        if self.method is Method.ISOTONIC:
            values = {
                "table": self.constants.astype(np.float32).reshape(-1),
                "steps": np.array(_STEPS, dtype=np.float32),
                "last": np.array(_STEPS - 1, dtype=np.float32),
                "first_of_class": (np.arange(len(self.constants)) * (_STEPS + 1)).astype(np.int64),
                "one": np.array(1, dtype=np.int64),
            }
            steps = [
                ("Mul", ["uncalibrated", "steps"], "at"),
                ("Floor", ["at"], "floor"),
                ("Max", ["floor", "nothing"], "not_below"),
                ("Min", ["not_below", "last"], "low"),
                ("Sub", ["at", "low"], "part"),
                ("Cast", ["low"], "low_number"),
                ("Add", ["low_number", "first_of_class"], "left_place"),
                ("Add", ["left_place", "one"], "right_place"),
                ("Gather", ["table", "left_place"], "left"),
                ("Gather", ["table", "right_place"], "right"),
                ("Sub", ["right", "left"], "rise"),
                ("Mul", ["part", "rise"], "risen"),
                ("Add", ["left", "risen"], "calibrated"),
            ]
        else:
            values = {
                "near_zero": np.array(_EDGE, dtype=np.float32),
                "near_one": np.array(1 - _EDGE, dtype=np.float32),
                "certain": np.array(1, dtype=np.float32),
                "slope": self.constants[:, 0].astype(np.float32),
                "intercept": self.constants[:, 1].astype(np.float32),
            }
            steps = [
                ("Max", ["uncalibrated", "near_zero"], "not_below"),
                ("Min", ["not_below", "near_one"], "clipped"),
                ("Sub", ["certain", "clipped"], "against"),
                ("Div", ["clipped", "against"], "odds"),
                ("Log", ["odds"], "log_odds"),
                ("Mul", ["log_odds", "slope"], "sloped"),
                ("Add", ["sloped", "intercept"], "raised"),
                ("Sigmoid", ["raised"], "calibrated"),
            ]
        values |= {
            "ones": np.ones((len(self.constants), 1), dtype=np.float32),
            "nothing": np.array(0, dtype=np.float32),
            "smallest": np.array(np.finfo(np.float32).tiny, dtype=np.float32),
        }
        steps += [
            ("MatMul", ["calibrated", "ones"], "total"),
            ("Max", ["total", "smallest"], "divisor"),
            ("Div", ["calibrated", "divisor"], "shares"),
            ("Greater", ["total", "nothing"], "any_class"),
            ("Where", ["any_class", "shares", "uncalibrated"], OUTPUT),
        ]

        def name(value: str) -> str:
            return value if value in ("uncalibrated", OUTPUT) else f"calibration/{value}"

        for kind, inputs, output in steps:
            node = onnx.NodeProto(op_type=kind, input=map(name, inputs), output=[name(output)])
            if kind == "Cast":
                node.attribute.append(helper.make_attribute("to", TensorProto.INT64))
            proto.graph.node.append(node)
        proto.graph.initializer.extend(numpy_helper.from_array(v, name(k)) for k, v in values.items())
        onnx.checker.check_model(proto)
        return bytes(proto.SerializeToString())


def _isotonic(p: Floats, truth: npt.NDArray[np.bool_]) -> Floats:
    grid = np.linspace(0, 1, _STEPS + 1)
    if truth.all() or not truth.any():
        return grid
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, truth.astype(np.float64))
    return np.asarray(fitted.predict(grid), dtype=np.float64)


def _platt(p: Floats, truth: npt.NDArray[np.bool_]) -> Floats:
    if truth.all() or not truth.any():
        return np.array([1.0, 0.0])
    # a weak penalty: rows that can be told apart perfectly have no finite slope without it
    fitted = LogisticRegression(C=1e3, max_iter=1000).fit(_log_odds(p)[:, None], truth)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    share = truth.mean()
    return np.array([slope, intercept] if slope > 0 else [0.0, np.log(share / (1 - share))])


def _log_odds(p: Floats) -> Floats:
    kept = np.clip(p, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(kept / (1 - kept)), dtype=np.float64)
