"""APIs that are mapped on chats tell errors by the names their own clients know."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from apiserver.errors import ApiError


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """An ApiError raised within that is about one of these fields is about the other."""
    try:
        yield
    except ApiError as error:
        name = names.get(error.param or "")
        if name is not None and error.param is not None:
            error.message, error.param = error.message.replace(error.param, name, 1), name
        raise
