"""Arithmetic without eval: the expression is parsed, and only numbers and operators are walked."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from chatgrpo.environments.toolbox import tool

# Results beyond this many bits are refused: 9**9**9 would never end.
MAX_BITS = 4096
MAX_LENGTH = 500

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


@tool("calculator", "Computes an arithmetic expression with + - * / // % ** and parentheses.")
def calculator(expression: str) -> str:
    """Raises ValueError for anything that is not arithmetic on numbers, and for results that are too large."""
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are read")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"not an expression: {expression!r}") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error
    except (OverflowError, RecursionError, MemoryError) as error:
        raise ValueError("the expression is too large") from error
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            return value  # type: ignore[return-value]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _real(_UNARY[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow):
                _check_power(a, b)
            return _real(_BINARY[type(op)](a, b))
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not arithmetic on numbers")


def _check_power(base: float, exponent: float) -> None:
    bits = base.bit_length() if isinstance(base, int) else 1
    if abs(exponent) * bits > MAX_BITS:
        raise ValueError("the power is too large")


def _real(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("the result is too large")
    assert isinstance(value, int | float)
    if not math.isfinite(value):
        raise ValueError("the result is too large")
    return value
