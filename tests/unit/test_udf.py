"""The registry of functions that SQL may call, and the process that answers ClickHouse."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from python_udfs.functions import registry
from python_udfs.functions.registry import Udf, functions, render_xml, udf
from python_udfs.functions.serve import result_row, serve


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Udf]]:
    """Registers a function for one test."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def do(function: Callable[..., Mapping[str, Any]], arguments: Any, returns: Any) -> Udf:
        udf(arguments, returns)(function)
        return registry._registered[function.__name__]

    yield do


def mp_mean(x: Any, k: int, name: str) -> dict[str, Any]:
    if k < 0:
        raise ValueError(f"{name}: negative")
    return {"mean": float(np.mean(x)) if x.size else math.nan, "n": k + len(name), "doubled": 2 * x}


ARGUMENTS = {"x": "Array(Float64)", "k": "Int64", "name": "String"}
RETURNS = {"mean": "Float64", "n": "Int64", "doubled": "Array(Float64)"}


def _row(x: list[float], k: int, name: str) -> bytes:
    """As ClickHouse writes it; short arrays and texts only."""
    text = name.encode()
    return bytes([len(x)]) + struct.pack(f"<{len(x)}d", *x) + struct.pack("<q", k) + bytes([len(text)]) + text


def test_rows_are_answered_in_order_block_by_block(register: Callable[..., Udf]) -> None:
    f = register(mp_mean, ARGUMENTS, RETURNS)
    asked = b"2\n" + _row([1.0, 3.0], 4, "é") + _row([], 0, "") + b"1\n" + _row([5.0], 1, "abc") + b"0\n"
    sink = io.BytesIO()
    serve(f, io.BytesIO(asked), sink)
    assert sink.getvalue() == b"".join(
        [
            b"\0"
            + struct.pack("<d", 2)
            + b"\0"
            + struct.pack("<q", 5)
            + b"\x02"
            + struct.pack("<2d", 2, 6)
            + b"\x01",
            b"\x01" + b"\0" + struct.pack("<q", 0) + b"\0" + b"\x01",  # a mean of nothing is NULL
            b"\0"
            + struct.pack("<d", 5)
            + b"\0"
            + struct.pack("<q", 4)
            + b"\x01"
            + struct.pack("<d", 10)
            + b"\x01",
        ]
    )


def test_long_arrays_and_texts_have_long_lengths(register: Callable[..., Udf]) -> None:
    f = register(mp_mean, ARGUMENTS, RETURNS)
    row = b"\xac\x02" + bytes(8 * 300) + struct.pack("<q", -1) + b"\xc8\x01" + b"z" * 200
    sink = io.BytesIO()
    serve(f, io.BytesIO(b"1\n" + row), sink)
    said = b"ValueError: " + b"z" * 200 + b": negative"
    assert sink.getvalue() == b"\x01\x01\x00\x00" + bytes([len(said) & 0x7F | 0x80, len(said) >> 7]) + said


def test_an_exception_is_a_reason_in_the_row_and_the_next_row_is_answered(
    register: Callable[..., Udf],
) -> None:
    f = register(mp_mean, ARGUMENTS, RETURNS)
    assert (
        result_row(f, [np.ones(1), -1, "x"]) == b"\x01\x01\x00\x00" + bytes([23]) + b"ValueError: x: negative"
    )
    assert result_row(f, [np.ones(1), 1, "x"])[0] == 0


def test_results_of_another_shape_are_a_reason_too(register: Callable[..., Udf]) -> None:
    def mp_wrong(x: Any) -> dict[str, float]:
        return {"other": 1.0}

    assert b"TypeError: mp_wrong gave ['other'], not ['y']" in result_row(
        register(mp_wrong, {"x": "Float64"}, {"y": "Float64"}), [1.0]
    )


def test_rows_that_end_early_are_an_error(register: Callable[..., Udf]) -> None:
    f = register(mp_mean, ARGUMENTS, RETURNS)
    with pytest.raises(EOFError):
        serve(f, io.BytesIO(b"1\n\x02abc"), io.BytesIO())


@pytest.mark.parametrize(
    ("arguments", "returns", "message"),
    [
        ({"y": "Float64"}, {"z": "Float64"}, "the arguments have other names"),
        ({"x": "Date"}, {"z": "Float64"}, "an argument has an unknown type"),
        ({"x": "Float64"}, {"z": "String"}, "a result has an unknown type"),
        ({"x": "Float64"}, {"error": "Float64"}, "none is called error"),
        ({"x": "Float64"}, {}, "there must be results"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(
    register: Callable[..., Udf], arguments: Any, returns: Any, message: str
) -> None:
    def mp_f(x: float) -> dict[str, float]:
        return {}

    with pytest.raises(ValueError, match=message):
        register(mp_f, arguments, returns)


def test_names_are_marked_as_ours_and_unique(register: Callable[..., Udf]) -> None:
    def f(x: float) -> dict[str, float]:
        return {}

    with pytest.raises(ValueError, match="must start with mp_"):
        register(f, {"x": "Float64"}, {"y": "Float64"})
    register(mp_mean, ARGUMENTS, RETURNS)
    with pytest.raises(ValueError, match="the name is taken"):
        register(mp_mean, ARGUMENTS, RETURNS)


def test_the_configuration_names_every_function_with_its_types() -> None:
    entries = ElementTree.fromstring(render_xml("/opt/my venv/python")).findall("function")
    assert [e.findtext("name") for e in entries] == list(functions())
    for entry, f in zip(entries, functions().values(), strict=True):
        assert [a.findtext("type") for a in entry.findall("argument")] == list(f.arguments.values())
        assert entry.findtext("return_type") == f.return_type
        assert "exec '/opt/my venv/python' -m" in (entry.findtext("command") or "")


@pytest.mark.parametrize("name", functions())
def test_every_function_says_what_it_does(name: str) -> None:
    assert len(functions()[name].call.__doc__ or "") > 80
