"""The configuration as an operator may see it: every setting as text, secrets hidden, with where it came from."""

import re

from msgspec import Struct

from config.api_keys import digest_of
from config.fields import FIELDS
from config.load import SECRET_FIELDS, Configuration

_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class ShownSetting(Struct, frozen=True):
    group: str
    name: str
    value: str
    origin: str


def shown_settings(configuration: Configuration) -> list[ShownSetting]:
    """In the order of their declaration. Secrets are counted, not shown."""
    settings = configuration.settings
    found = []
    for field in FIELDS:
        value = getattr(getattr(settings, field.group), field.name)
        text = shown_value(field.name, value)
        found.append(ShownSetting(field.group, field.name, text, configuration.origins[field.name]))
    return found


def shown_value(name: str, value: object) -> str:
    """Of the setting of this name."""
    if name in SECRET_FIELDS:
        assert isinstance(value, tuple)
        return f"({len(value)} hidden)"
    return _shown(value)


def secret_digests(configuration: Configuration) -> list[str]:
    """SHA-256 in hex of each secret, users and passwords of URLs among them: enough to recognise it."""
    secrets: list[str] = []
    for field in FIELDS:
        value = getattr(getattr(configuration.settings, field.group), field.name)
        if field.name in SECRET_FIELDS:
            secrets += value
        elif isinstance(value, str):
            for user in _USER_OF_URL.findall(value):
                secrets += [user, *user.split(":")]
    return [digest_of(secret.encode()).hex() for secret in secrets if secret]


def _shown(value: object) -> str:
    if value is None:
        return "(derived)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    return _USER_OF_URL.sub("(hidden)", str(value))
