"""One command-line flag per setting, made from config.fields. Values stay text: config.load converts and checks them."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from config.fields import FIELDS, Field, nearest
from config.load import ConfigError


class FlagParser(argparse.ArgumentParser):
    """argparse that raises ConfigError, and names the nearest flag for one it does not know."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: argparse's own long signature
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise ConfigError([message])

    def known_flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def add_setting_flags(parser: FlagParser) -> None:
    """A flag for every setting; what is not given leaves no trace in the namespace."""
    groups = {group: parser.add_argument_group(group) for group in dict.fromkeys(field.group for field in FIELDS)}
    for field in FIELDS:
        groups[field.group].add_argument(field.flag, dest=field.name, help=_help(field), **_shape(field))


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed arguments, as config.load takes them."""
    return {field.name: getattr(arguments, field.name) for field in FIELDS if hasattr(arguments, field.name)}


def refuse_extras(parser: FlagParser, extras: Sequence[str]) -> None:
    """Raises ConfigError that names what nobody understood."""
    unknown = [extra.split("=")[0] for extra in extras if extra.startswith("-")]
    lines = []
    for flag in unknown:
        near = nearest(flag, parser.known_flags())
        lines.append(f"{flag} is unknown" + (f", did you mean {near}?" if near else ""))
    if extras and not lines:
        lines.append(f"unexpected argument {extras[0]!r}")
    if lines:
        raise ConfigError(lines)


def _shape(field: Field) -> dict[str, Any]:  # Any: keyword arguments of add_argument
    if field.shape == "switch":
        return {"action": argparse.BooleanOptionalAction, "default": argparse.SUPPRESS}
    metavar = "{" + ",".join(field.choices) + "}" if field.choices else field.name.split("_")[-1].upper()
    action = "append" if field.shape == "list" else "store"
    return {"action": action, "metavar": metavar, "default": argparse.SUPPRESS}


def _help(field: Field) -> str:
    text = field.description.replace("%", "%%")
    if field.shape == "list":
        text += " (repeatable)"
    if field.default in (None, ()):
        return text
    return f"{text} (default: {str(field.default).lower() if field.shape == 'switch' else field.default})"
