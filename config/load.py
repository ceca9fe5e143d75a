"""Settings from four places: defaults < TOML file < environment < flags. Every value remembers where it came from.

An unknown key is an error that says where it stood and names the nearest valid one; a value of the wrong type or out
of bounds is an error too. All of them are reported at once, one line each.
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from config.fields import ENV_PREFIX, FIELD_BY_NAME, FIELDS, Field, nearest
from config.settings import Settings

CONFIG_ENV_NAME = ENV_PREFIX + "CONFIG"
DEFAULT_ORIGIN = "default"
SECRET_FIELDS = frozenset({"api_key"})

_GROUPS = tuple(dict.fromkeys(field.group for field in FIELDS))
# A Kubernetes Service called tokenfleet, or tokenfleet-something, puts these into every pod of its namespace.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_SERVICE_URL = re.compile(r"^(tcp|udp|sctp)://")


class ConfigError(Exception):
    """The configuration cannot be used. `lines` has one line per fault, for the operator."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Configuration(Struct, frozen=True):
    """Settings, and where each field's value came from: "default", a flag, an environment variable, a place in a file."""

    settings: Settings
    origins: dict[str, str]

    def is_set(self, name: str) -> bool:
        return self.origins[name] != DEFAULT_ORIGIN


class _Given(Struct, frozen=True):
    """A value as it was written. Text still has to become its type."""

    field: Field
    raw: Any  # Any: whatever TOML has, or text
    origin: str
    is_text: bool


def load(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None) -> Configuration:
    """Merge the four places. `flags` maps field names to text, booleans or lists of text. Raises ConfigError."""
    faults: list[str] = []
    if file is None and CONFIG_ENV_NAME in environ:
        file = Path(environ[CONFIG_ENV_NAME])
    values: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
    origins = dict.fromkeys(FIELD_BY_NAME, DEFAULT_ORIGIN)
    for given in _all_given(flags, environ, file, faults):
        try:
            values[given.field.group][given.field.name] = _convert(given)
        except ValueError as error:
            faults.append(f"{given.origin} is {_shown(given)}: {error}")
        origins[given.field.name] = given.origin
    if faults:
        raise ConfigError(faults)
    return Configuration(msgspec.convert(values, Settings), origins)


def _all_given(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None, faults: list[str]
) -> Iterator[_Given]:
    """Weakest first: a later value of the same field wins."""
    if file is not None:
        yield from _from_file(file, faults)
    yield from _from_environment(environ, faults)
    for name, raw in flags.items():
        field = FIELD_BY_NAME[name]
        yield _Given(field, raw, field.flag, is_text=field.shape != "switch")


def _from_file(file: Path, faults: list[str]) -> Iterator[_Given]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"{file}: {error.strerror}")
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{file} is not valid TOML: {error}")
        return
    for group, table in document.items():
        if group not in _GROUPS or not isinstance(table, dict):
            faults.append(f"{file}: {_unknown_top_level(group)}")
            continue
        for key, raw in table.items():
            field = FIELD_BY_NAME.get(key)
            if field is None or field.group != group:
                faults.append(f"{file}: [{group}] {key} is unknown{_hint_key(group, key)}")
            else:
                yield _Given(field, raw, f"{file}: [{group}] {key}", is_text=False)


def _unknown_top_level(key: str) -> str:
    field = FIELD_BY_NAME.get(key)
    if field is not None:
        return f"{key} belongs under [{field.group}]"
    near = nearest(key, _GROUPS)
    return f"[{key}] is unknown" + (f", did you mean [{near}]?" if near else f": there are {', '.join(_GROUPS)}")


def _hint_key(group: str, key: str) -> str:
    """Where the key belongs, or what it may have meant: of its own group if one is near."""
    field = FIELD_BY_NAME.get(key)
    if field is None:
        siblings = [field.name for field in FIELDS if field.group == group]
        near = nearest(key, siblings) or nearest(key, FIELD_BY_NAME)
        field = FIELD_BY_NAME[near] if near else None
        if field is None:
            return ""
        place = "" if field.group == group else f" under [{field.group}]"
        return f", did you mean {field.name}{place}?"
    return f" there: it belongs under [{field.group}]"


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Iterator[_Given]:
    by_env_name = {field.env_name: field for field in FIELDS}
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_ENV_NAME or _is_service_link(name, text):
            continue
        field = by_env_name.get(name)
        if field is None:
            near = nearest(name, by_env_name)
            faults.append(f"environment: {name} is unknown" + (f", did you mean {near}?" if near else ""))
        elif field.shape == "list":
            yield _Given(field, [part.strip() for part in text.split(",")], name, is_text=True)
        else:
            yield _Given(field, text, name, is_text=True)


def _is_service_link(name: str, text: str) -> bool:
    return bool(_SERVICE_LINK.search(name) or (name.endswith("_PORT") and _SERVICE_URL.match(text)))


def _convert(given: _Given) -> Any:
    """The value in its type. Raises ValueError with what was expected."""
    field = given.field
    if field.choices and given.raw not in field.choices:
        raise ValueError(f"expected one of {', '.join(field.choices)}")
    raw = given.raw.strip() if isinstance(given.raw, str) else given.raw
    try:
        value = msgspec.convert(raw, field.type, strict=not given.is_text)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`", "").replace("Expected", "expected", 1)) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise ValueError("expected a text that is not empty")
    return value


def _shown(given: _Given) -> str:
    """As it was written, but never a key: error lines end up in logs."""
    raw = given.raw
    if given.field.name in SECRET_FIELDS:
        return "(hidden)"
    return ", ".join(raw) if isinstance(raw, list) and all(isinstance(part, str) for part in raw) else f"{raw!r}"
