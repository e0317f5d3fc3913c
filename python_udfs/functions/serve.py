"""The process behind a ClickHouse executable UDF: rows in RowBinary in, rows out, until the pipe is closed.

    python -m python_udfs.functions.serve TOPIC FUNCTION

ClickHouse starts it (see `registry.render_xml`), sends the number of rows as a line, then the rows, and reads
as many results. What a function prints goes to stderr: stdout is the protocol.
"""

from __future__ import annotations

import importlib
import math
import os
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from python_udfs.functions.registry import Udf, functions

FLUSH_BYTES = 1 << 16


def _exactly(source: BinaryIO, n: int) -> bytes:
    data = source.read(n)
    if len(data) != n:
        raise EOFError("the rows end in the middle of a value")
    return data


def _read_length(source: BinaryIO) -> int:
    """An unsigned LEB128."""
    value = shift = 0
    while True:
        byte = _exactly(source, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7


def _length(n: int) -> bytes:
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _read_array(dtype: str) -> Callable[[BinaryIO], Any]:
    def read(source: BinaryIO) -> Any:
        n = _read_length(source)
        # a copy: some libraries refuse memory that they could not write to
        return np.frombuffer(_exactly(source, 8 * n), dtype=dtype).copy()

    return read


READERS: dict[str, Callable[[BinaryIO], Any]] = {
    "Float64": lambda source: struct.unpack("<d", _exactly(source, 8))[0],
    "Int64": lambda source: struct.unpack("<q", _exactly(source, 8))[0],
    "String": lambda source: _exactly(source, _read_length(source)).decode(),
    "Array(Float64)": _read_array("<f8"),
    "Array(Int64)": _read_array("<i8"),
}
NULL, NOT_NULL = b"\x01", b"\x00"


def _scalar(kind: str, value: Any) -> bytes:
    if value is None or not math.isfinite(value):
        return NULL
    return NOT_NULL + (
        struct.pack("<d", float(value)) if kind == "Float64" else struct.pack("<q", int(value))
    )


def _array(kind: str, value: Any) -> bytes:
    items = np.ascontiguousarray(value, dtype="<f8" if kind == "Array(Float64)" else "<i8")
    return _length(items.size) + items.tobytes()


def _called(f: Udf, arguments: list[Any]) -> Mapping[str, Any]:
    found = f.call(*arguments)
    if set(found) != set(f.returns):
        raise TypeError(f"{f.name} gave {sorted(found)}, not {sorted(f.returns)}")
    return found


def result_row(f: Udf, arguments: list[Any]) -> bytes:
    """One call as a RowBinary row of `f.return_type`. What goes wrong is a value: NULLs and the reason."""
    try:
        found = _called(f, arguments)
        cells = [
            _array(kind, found[name]) if kind.startswith("Array") else _scalar(kind, found[name])
            for name, kind in f.returns.items()
        ]
    except Exception as e:  # whatever it is: the reason goes into the row
        text = f"{type(e).__name__}: {e}".encode()[:1000].decode(errors="ignore").encode()
        empty = [b"\x00" if kind.startswith("Array") else NULL for kind in f.returns.values()]
        return b"".join([*empty, NOT_NULL, _length(len(text)), text])
    return b"".join([*cells, NULL])


def serve(f: Udf, source: BinaryIO, sink: BinaryIO) -> None:
    """Answers blocks of rows until `source` ends."""
    readers = [READERS[kind] for kind in f.arguments.values()]
    while header := source.readline():
        out = bytearray()
        for _ in range(int(header)):
            out += result_row(f, [read(source) for read in readers])
            if len(out) >= FLUSH_BYTES:
                sink.write(out)
                sink.flush()
                out.clear()
        sink.write(out)
        sink.flush()


def main() -> None:
    topic, name = sys.argv[1:]
    importlib.import_module(f"python_udfs.functions.{topic}")
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(functions()[name], source, sink)


if __name__ == "__main__":
    main()
