"""Which settings a running fleet can take up: those of its workers, and those the supervisor looks up when it needs them.

Everything else is built into processes and memory that a reload leaves alone: engines, broker, rings, sockets, and what
watches over them. The log of engines and broker changes with their next process.
"""

from msgspec import structs

from config.fields import FIELDS
from config.load import ConfigError
from config.settings import Settings

FIXED_OF_SERVER = frozenset({"host", "port", "uds", "workers", "response_store_bytes", "response_store_entries"})
FIXED_OF_OPS = frozenset(
    {"ops_host", "ops_port", "ring_bytes", "heartbeat_timeout_s", "engine_step_timeout_s", "restart_backoff_max_s"}
)


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
