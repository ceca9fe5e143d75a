"""Literals of Python, as models write them in calls: where one ends in a text that is still arriving, and its JSON."""

import ast
from typing import Any

from apiserver.tools.json_text import json_text

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_JSON_NAMES = {"true": True, "false": False, "null": None}


class NotALiteral(Exception):
    """Text that stands for no JSON value."""


def end_of_argument(text: str, at: int) -> int | None:
    """Place of the comma or bracket that ends the expression at `at`; None while it has not come.

    Raises NotALiteral where brackets do not match.
    """
    owed: list[str] = []
    quote = ""
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        elif character in _CLOSING:
            owed.append(_CLOSING[character])
        elif not owed and character in ",)":
            return at
        elif character in ")]}" and (not owed or owed.pop() != character):
            raise NotALiteral(text[: at + 1])
        at += 1
    return None


def json_of(expression: str) -> str:
    """Raises NotALiteral."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return json_text(_value(tree.body))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise NotALiteral(expression) from None


def _value(node: ast.expr) -> Any:  # Any: JSON
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case _:
            raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("not a key of an object")
