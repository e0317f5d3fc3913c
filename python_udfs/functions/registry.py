"""The one list of functions that SQL may call: what they take and give, and how ClickHouse is told of them.

    @udf(arguments={"buys": "Array(Float64)"}, returns={"pin": "Float64"})
    def mp_pin(buys: Floats) -> dict[str, float]: ...

stays an ordinary Python function. In SQL `mp_pin(buys)` is `Tuple(pin Nullable(Float64), error
Nullable(String))`: a function that raises gives NULLs and the reason, never a failed query.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Argument = Literal["Float64", "Int64", "String", "Array(Float64)", "Array(Int64)"]
Result = Literal["Float64", "Int64", "Array(Float64)", "Array(Int64)"]
F = TypeVar("F", bound=Callable[..., Mapping[str, Any]])

ERROR: Final = "error"
POOL_SIZE: Final = 2
# A block of rows may take minutes; ClickHouse's own limit of 10 s is for one read.
TIMEOUT_S: Final = 600
FILE: Final = "marketprism_function.xml"


@dataclass(frozen=True, slots=True)
class Udf:
    """A registered function.

    Attributes:
        arguments: ClickHouse type by argument name, in order. A NULL comes as nan: the model passes `ifNull(x, nan)`.
        returns: type by name of a result. A float that is not finite becomes NULL; an array is never NULL.
    """

    name: str
    call: Callable[..., Mapping[str, Any]]
    arguments: Mapping[str, Argument]
    returns: Mapping[str, Result]

    @property
    def return_type(self) -> str:
        """The SQL type of a call."""
        parts = [f"{n} {t if t.startswith('Array') else f'Nullable({t})'}" for n, t in self.returns.items()]
        return f"Tuple({', '.join([*parts, f'{ERROR} Nullable(String)'])})"


_registered: dict[str, Udf] = {}


def udf(arguments: Mapping[str, Argument], returns: Mapping[str, Result]) -> Callable[[F], F]:
    """Makes a pure function callable from SQL, under its own name.

    Raises:
        ValueError: the declaration does not fit the function, or the name is taken.
    """

    def register(function: F) -> F:
        name = function.__name__
        problems = [
            (not name.startswith("mp_"), "the name must start with mp_"),
            (name in _registered, "the name is taken"),
            (
                list(inspect.signature(function).parameters) != list(arguments),
                "the arguments have other names",
            ),
            (not set(arguments.values()) <= set(get_args(Argument)), "an argument has an unknown type"),
            (not set(returns.values()) <= set(get_args(Result)), "a result has an unknown type"),
            (not returns or ERROR in returns, f"there must be results, and none is called {ERROR}"),
        ]
        for is_wrong, problem in problems:
            if is_wrong:
                raise ValueError(f"{name}: {problem}")
        _registered[name] = Udf(name, function, dict(arguments), dict(returns))
        return function

    return register


def functions() -> dict[str, Udf]:
    """All functions of this package, by name."""
    package = importlib.import_module("python_udfs.functions")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_registered.items()))


def render_xml(python: str = sys.executable) -> str:
    """ClickHouse's configuration of all functions (`*_function.xml`).

    python: the interpreter on the server's machine that has this package installed.
    """
    entries = "".join(_entry(f, python) for f in functions().values())
    return f"<functions>\n{entries}</functions>\n"


def _entry(f: Udf, python: str) -> str:
    arguments = "".join(
        f"\n        <argument><type>{t}</type><name>{n}</name></argument>" for n, t in f.arguments.items()
    )
    topic = f.call.__module__.rpartition(".")[2]
    # One row at a time, two processes: the threads of a linear algebra library would only get in each other's way,
    # and the order of their sums could differ from run to run.
    run = f"exec {shlex.quote(python)} -m python_udfs.functions.serve {topic} {f.name}"
    command = f"OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 {run}"
    return f"""    <function>
        <type>executable_pool</type>
        <name>{f.name}</name>{arguments}
        <return_type>{f.return_type}</return_type>
        <format>RowBinary</format>
        <command>{escape(command)}</command>
        <execute_direct>0</execute_direct>
        <send_chunk_header>1</send_chunk_header>
        <pool_size>{POOL_SIZE}</pool_size>
        <max_command_execution_time>{TIMEOUT_S}</max_command_execution_time>
        <command_read_timeout>{TIMEOUT_S * 1000}</command_read_timeout>
        <command_write_timeout>{TIMEOUT_S * 1000}</command_write_timeout>
        <command_termination_timeout>2</command_termination_timeout>
    </function>
"""
