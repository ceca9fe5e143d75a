"""Which settings a running fleet can take up: those that only its workers and its supervisor read.

Everything else is built into processes and memory that a reload leaves alone: engines, broker, rings, sockets.
"""

from msgspec import structs

from config.fields import FIELDS
from config.load import ConfigError
from config.settings import Settings

FIXED_OF_SERVER = frozenset({"host", "port", "uds", "workers", "response_store_bytes", "response_store_entries"})
FIXED_OF_OPS = frozenset({"ops_host", "ops_port", "ring_bytes"})


def reloaded(old: Settings, new: Settings) -> Settings:
    """The settings to go on with. Raises ConfigError that names every change that needs a restart."""
    lines = [
        f"{field.flag} cannot change while the fleet runs"
        for field in FIELDS
        if not _can_change(field.group, field.name)
        and _value(old, field.group, field.name) != _value(new, field.group, field.name)
    ]
    if lines:
        raise ConfigError(lines)
    return structs.replace(old, server=new.server, ops=new.ops)


def _can_change(group: str, name: str) -> bool:
    return (group == "server" and name not in FIXED_OF_SERVER) or (group == "ops" and name not in FIXED_OF_OPS)


def _value(settings: Settings, group: str, name: str) -> object:
    return getattr(getattr(settings, group), name)
