"""A fitted baseline as ONNX: input `features` [b, k] float32 with NaN, output `probabilities` [b, c]."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType as LightgbmFloat
from skl2onnx import convert_sklearn, update_registered_converter
from skl2onnx.algebra.onnx_ops import OnnxMax, OnnxMin
from skl2onnx.common.data_types import FloatTensorType

from python_udfs.errors import UserError
from python_udfs.scorer.card import INPUT, OUTPUT
from python_udfs.training.baselines import Baseline, Logistic, Trees, Winsorizer

OPSET: Final = 15  # the newest that both converters write
PARITY_LIMIT: Final = 1e-4


def _winsorizer_shape(operator: Any) -> None:
    operator.outputs[0].type = FloatTensorType([None, operator.inputs[0].type.shape[1]])


def _convert_winsorizer(scope: Any, operator: Any, container: Any) -> None:
    fitted, opset = operator.raw_operator, container.target_opset
    high = OnnxMin(operator.inputs[0], fitted.high_.astype(np.float32), op_version=opset)
    both = OnnxMax(high, fitted.low_.astype(np.float32), op_version=opset, output_names=operator.outputs)
    both.add_to(scope, container)


update_registered_converter(Winsorizer, "MarketprismWinsorizer", _winsorizer_shape, _convert_winsorizer)


def to_onnx(model: Logistic | Trees, n_features: int) -> bytes:
    """The ONNX file of a fitted model. The same model gives the same bytes."""
    if isinstance(model, Logistic):
        graph = convert_sklearn(
            model.pipeline,
            name="logistic",  # the default is a random name
            initial_types=[(INPUT, FloatTensorType([None, n_features]))],
            options={id(model.pipeline): {"zipmap": False}},
            target_opset=OPSET,
        )
    else:
        graph = convert_lightgbm(
            model.booster,
            name="lightgbm",
            initial_types=[(INPUT, LightgbmFloat([None, n_features]))],
            zipmap=False,
            target_opset=OPSET,
        )
    return bytes(graph.SerializeToString())


def parity_rows(rows: npt.NDArray[np.float32], limit: int = 500) -> npt.NDArray[np.float32]:
    """Rows to compare on: the last `limit` real ones, each feature missing in turn, and all missing."""
    real = rows[-limit:]
    k = rows.shape[1]
    holes = np.repeat(real[:20, None, :], k, axis=1)
    holes[:, np.arange(k), np.arange(k)] = np.nan
    return np.concatenate([real, holes.reshape(-1, k), np.full((1, k), np.nan, dtype=np.float32)])


def parity(model: Baseline, onnx: bytes, rows: npt.NDArray[np.float32]) -> float:
    """The largest difference in probability between ONNX and the framework.

    Raises:
        UserError: it is above PARITY_LIMIT: the exported model is not the trained one.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    exported = session.run([OUTPUT], {INPUT: rows})[0]
    worst = float(np.abs(exported - model.probabilities(rows)).max())
    # not `worst > limit`: NaN must fail too
    if not worst <= PARITY_LIMIT:
        raise UserError(
            f"the exported model differs from the trained one by {worst:.2g} in probability "
            f"(limit {PARITY_LIMIT}): it was not saved. Is onnxmltools or skl2onnx another version than in "
            "the lock file?"
        )
    return worst


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts a folder with these files in the place of `folder`, all of them or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh, old = Path(scratch, "new"), Path(scratch, "old")
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        if folder.exists():
            shutil.move(folder, old)
        shutil.move(fresh, folder)
