"""PyTorch, which is optional: only the sequence models need it."""

from __future__ import annotations

from python_udfs.errors import UserError

try:
    import torch
except ModuleNotFoundError as e:
    raise UserError("the sequence models need PyTorch, which is not installed: run `make torch`") from e

__all__ = ["torch"]
