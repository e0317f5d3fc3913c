"""A model in memory: its card, its ONNX session, and how its probabilities become a score."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from python_udfs.errors import UserError
from python_udfs.scorer.card import INPUT, OUTPUT, Card
from python_udfs.scorer.relation import Floats
from python_udfs.settings import settings

RUNTIME: Final = f"onnxruntime {ort.__version__}"


class Model:
    """A loaded model.

    Attributes:
        card: its card.
        threads: of a run; the bits of a result may depend on it.
    """

    def __init__(self, card: Card, onnx: bytes, *, threads: int = 1) -> None:
        """Raises UserError where the ONNX model takes another input than the card says."""
        self.card, self.threads = card, threads
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        shape = self._session.get_inputs()[0].shape
        expected = [len(card.features)] if card.window == 1 else [card.window, len(card.features)]
        if shape[1:] != expected:
            raise UserError(
                f"model {card.name} {card.version}: the ONNX model takes inputs of shape {shape[1:]}, "
                f"its card says {expected}. Train it again"
            )
        self._weights = np.sign(np.array(card.classes, dtype=np.float32))

    @property
    def threshold(self) -> float:
        """The least probability of a signal."""
        return settings().confidence if self.card.confidence is None else self.card.confidence

    def run(self, inputs: Floats) -> Floats:
        """Inputs (n, features), or (n, window, features), in the card's order to probabilities (n, classes)."""
        probabilities: Floats = self._session.run([OUTPUT], {INPUT: inputs})[0]
        return probabilities

    def scores(self, probabilities: Floats) -> Floats:
        """P(up) - P(down) of each row, (n,). Row by row: a product of matrices may round by batch size."""
        scores: Floats = (probabilities * self._weights).sum(axis=1, dtype=np.float32)
        return scores

    def signals(self, probabilities: Floats, threshold: float) -> tuple[npt.NDArray[np.int8], Floats]:
        """The likeliest class's direction where it is at least as likely as `threshold`, else 0; and how likely.

        Where two classes are equally likely the model says neither: 0.
        """
        confidence: Floats = probabilities.max(axis=1)
        alone = (probabilities == confidence[:, None]).sum(axis=1) == 1
        likeliest = self._weights[probabilities.argmax(axis=1)]
        signal = np.where((confidence >= np.float32(threshold)) & alone, likeliest, 0)
        return signal.astype(np.int8), confidence
