"""A fitted network as ONNX: input `features` [b, window, k] float32 with NaN, output `probabilities` [b, c] float32.

Smaller variants keep the float32 input and output, and the normalisation: a funding rate is 0 to a half float.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import onnx.utils
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from scipy.stats import spearmanr

from python_udfs.errors import UserError
from python_udfs.scorer.card import INPUT, OUTPUT
from python_udfs.training.fit_network import Network
from python_udfs.training.metrics import direction
from python_udfs.training.networks import SequenceNetwork
from python_udfs.training.pytorch import torch

Windows = npt.NDArray[np.float32]

OPSET: Final = 17
PARITY_LIMIT: Final = 1e-4


class Variant(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class VariantReport:
    """What a smaller file costs, on the same samples."""

    size: int  # bytes
    max_abs_diff: float  # in probability, to the original
    ic: float | None  # rank correlation of P(up) - P(down) with the return; None where it is not defined
    ic_loss: float | None  # the original's less that


class _Probabilities(torch.nn.Module):
    def __init__(self, module: SequenceNetwork) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.module(x)[0], dim=1)


def to_onnx(network: Network) -> bytes:
    """The ONNX file of a network, for any batch. The same network gives the same bytes.

    By the TorchScript exporter: the newer one takes ten times as long here and gives a file that is as fast.
    """
    example = torch.zeros((2, network.window, len(network.names)))
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will go some day
        torch.onnx.export(
            _Probabilities(network.module).eval(),
            (example,),
            out,  # type: ignore[arg-type]  # the older exporter writes into memory, too
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=OPSET,
        )
    return out.getvalue()


def run(model: bytes, windows: Windows) -> npt.NDArray[np.float32]:
    """Probabilities [b, c] by ONNX Runtime on one core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {INPUT: windows})[0])


def parity_windows(windows: Windows, limit: int = 300) -> Windows:
    """Windows to compare on: the last `limit` real ones, short histories, each column missing in turn, and nothing."""
    real = windows[-limit:]
    _, window, k = real.shape
    short = np.repeat(real[-1:], window, axis=0)
    short[np.arange(window)[None, :] < np.arange(window)[:, None]] = np.nan
    holes = np.repeat(real[-1:], k, axis=0)
    holes[np.arange(k), :, np.arange(k)] = np.nan
    return np.concatenate([real, short, holes, np.full((1, window, k), np.nan, dtype=np.float32)])


def parity(network: Network, model: bytes, windows: Windows) -> float:
    """The largest difference in probability between ONNX and PyTorch.

    Raises:
        UserError: it is above PARITY_LIMIT: the exported network is not the trained one.
    """
    worst = float(np.abs(run(model, windows) - network.predict(windows)).max())
    # not `worst > limit`: NaN must fail too
    if not worst <= PARITY_LIMIT:
        raise UserError(
            f"the exported network differs from the trained one by {worst:.2g} in probability "
            f"(limit {PARITY_LIMIT}): it was not saved. Are torch, onnx or onnxruntime another version than in "
            "the lock file?"
        )
    return worst


def to_fp16(model: bytes) -> bytes:
    """The same network with half floats inside, behind its normalisation."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    (*_, last) = (node for node in graph.graph.node if "/normalise/" in node.name)
    parts = onnx.utils.Extractor(graph)
    before, after = (
        parts.extract_model([a], [b]) for a, b in ((INPUT, last.output[0]), (last.output[0], OUTPUT))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants too small for a half float, which become its smallest
        half = convert_float_to_float16(after, keep_io_types=True)
    nodes, initializers = list(half.graph.node), list(half.graph.initializer)
    for name in ("node", "initializer", "input"):
        half.graph.ClearField(name)
    half.graph.input.extend(before.graph.input)
    half.graph.node.extend([*before.graph.node, *nodes])
    half.graph.initializer.extend([*before.graph.initializer, *initializers])
    return bytes(half.SerializeToString())


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, windows: Windows) -> None:
        self.batches: Iterator[Windows] = iter(np.array_split(windows, max(len(windows) // 64, 1)))

    def get_next(self) -> dict[str, Windows] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def to_int8(model: bytes, windows: Windows) -> bytes:
    """The same network with its convolutions and matrices in 8 bits (static, per channel).

    Args:
        model: of `to_onnx`.
        windows: [b, window, k] that the ranges are taken from: of training rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared, out = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(onnx.load_from_string(model), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            _Reader(windows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return out.read_bytes()


def compare(
    original: bytes,
    variant: bytes,
    windows: Windows,
    returns: npt.NDArray[np.float64],
    classes: Sequence[int],
) -> VariantReport:
    """What a variant loses against the original on n samples, best out of sample.

    Args:
        windows: [n, window, k].
        returns: [n], the labels' returns.
        classes: the order of the outputs.
    """
    before, after = (run(model, windows) for model in (original, variant))
    kept, ic = (_ic(p.astype(np.float64), returns, classes) for p in (before, after))
    return VariantReport(
        size=len(variant),
        max_abs_diff=float(np.abs(after - before).max()),
        ic=ic,
        ic_loss=None if kept is None or ic is None else kept - ic,
    )


def _ic(
    probabilities: npt.NDArray[np.float64], returns: npt.NDArray[np.float64], classes: Sequence[int]
) -> float | None:
    score = direction(probabilities, classes)
    if len(score) < 2 or np.ptp(score) == 0 or np.ptp(returns) == 0:
        return None
    return float(spearmanr(score, returns).statistic)
