"""APIs that are mapped on chats tell errors by the names their own clients know."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from apiserver.errors import ApiError

_PART = re.compile(r"[.\[]")


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """An ApiError raised within that is about one of these fields, or a part of it, is about the other."""
    try:
        yield
    except ApiError as error:
        field, *_ = _PART.split(error.param or "", maxsplit=1)
        if field in names and error.param is not None:
            param = names[field] + error.param.removeprefix(field)
            error.message, error.param = error.message.replace(error.param, param, 1), param
        raise
