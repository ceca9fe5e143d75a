"""The settings as a flat list of named fields, read off the structs of config.settings.

Flags, TOML keys, environment variables and the help text all come from here: a setting is declared once.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.inspect import BoolType, LiteralType, Metadata, Type, UnionType, VarTupleType, type_info

from config.settings import Settings

ENV_PREFIX = "TOKENFLEET_"
Value = str | int | float | bool | tuple[str, ...] | None


class Field(Struct, frozen=True):
    """One setting. `type` is what msgspec converts to: its bounds are checked there."""

    group: str
    name: str
    type: Any  # Any: a typing construct
    default: Value
    description: str
    shape: Literal["switch", "list", "value"]
    choices: tuple[str, ...]  # of a closed set, else empty

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env_name(self) -> str:
        return ENV_PREFIX + self.name.upper()


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, if one is similar at all."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)), None)


def _all_fields() -> tuple[Field, ...]:
    return tuple(
        _field(group.name, field, get_type_hints(group.type, include_extras=True)[field.name])
        for group in msgspec.structs.fields(Settings)
        for field in msgspec.structs.fields(group.type)
    )


def _field(group: str, field: msgspec.structs.FieldInfo, hint: Any) -> Field:
    metadata = type_info(hint)
    assert isinstance(metadata, Metadata), f"{field.name} has no description"
    bare = _bare(metadata)
    return Field(
        group=group,
        name=field.name,
        type=hint,
        default=field.default,
        description=(metadata.extra_json_schema or {})["description"],
        shape="switch" if isinstance(bare, BoolType) else "list" if isinstance(bare, VarTupleType) else "value",
        choices=tuple(str(value) for value in bare.values) if isinstance(bare, LiteralType) else (),
    )


def _bare(kind: Type) -> Type:
    """Without its description and its None."""
    if isinstance(kind, Metadata):
        return _bare(kind.type)
    if isinstance(kind, UnionType):
        return _bare(kind.types[0])
    return kind


FIELDS = _all_fields()
FIELD_BY_NAME = {field.name: field for field in FIELDS}
