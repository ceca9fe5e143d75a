"""Who may ask, and how much: the API keys of a worker, from the settings and from a file that may change at any time.

Keys are compared as SHA-256 digests. The digest is looked up, and compared in constant time: neither step takes a time
that a client could read a key from, since it cannot choose the digest of its guess.
"""

import hmac
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from apiserver.errors import KeyLimitReached
from config.api_keys import ApiKey, KeyFileError, KeyLimits, digest_of, read_api_keys
from ipc.key_page import MINUTE_S, KeyPages, KeyUse

logger = logging.getLogger(__name__)

LIMIT_HEADERS = tuple(
    f"x-ratelimit-{field}-{what}" for what in ("requests", "tokens") for field in ("limit", "remaining", "reset")
)
_NO_DIGEST = bytes(32)
Headers = list[tuple[bytes, bytes]]


class Holder(Struct, frozen=True):
    """A key that is known. `number` is its place among all keys, from 1."""

    key: ApiKey
    number: int
    key_id: int  # of its rows in ipc.key_page
    is_limited: bool


class Keyring:
    """All keys of one worker. `pages` count what the limited ones use; without them no limit holds."""

    def __init__(self, keys: Sequence[str], file: Path | None = None, pages: KeyPages | None = None) -> None:
        """Raises KeyFileError."""
        self._fixed = tuple(
            ApiKey(f"api-key-{number}", digest_of(key.encode())) for number, key in enumerate(keys, start=1)
        )
        self._file, self._pages = file, pages
        self._stamp = _stamp(file)
        self._holders: dict[bytes, Holder] = {}
        self._take(read_api_keys(file) if file is not None else ())

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self._holders)

    @property
    def has_several(self) -> bool:
        return len(self._holders) > 1

    def holder_or_none(self, digest: bytes) -> Holder | None:
        holder = self._holders.get(digest)
        is_equal = hmac.compare_digest(holder.key.digest if holder is not None else _NO_DIGEST, digest)
        return holder if is_equal else None

    def reload(self) -> None:
        """To be called now and then: one `stat`. A file that cannot be used is reported once, and changes nothing."""
        stamp = _stamp(self._file)
        if self._file is None or stamp == self._stamp:
            return
        self._stamp = stamp  # taken before reading: a change during it is seen the next time
        try:
            self._take(read_api_keys(self._file))
        except KeyFileError as error:
            logger.error("key file not taken up", extra={"reason": str(error)})
        else:
            logger.info("key file taken up", extra={"num_keys": len(self._holders)})

    def begin(self, holder: Holder) -> Headers:
        """Count one request of a limited key; returns its x-ratelimit headers. Raises KeyLimitReached."""
        assert self._pages is not None
        use, limits = self._pages.use_of(holder.key_id), holder.key.limits
        refusal = _refusal(limits, use)
        if refusal is not None:
            reason, retry_after_s = refusal
            raise KeyLimitReached(
                f"Rate limit reached for API key {holder.key.name!r}: {reason}. Try again in {retry_after_s} s.",
                retry_after_s=retry_after_s,
                limit_headers=_headers(limits, use),
            )
        self._pages.begin(holder.key_id)
        use.requests += 1
        return _headers(limits, use)

    def end(self, holder: Holder, num_tokens: int) -> None:
        """Of every request that `begin` took."""
        assert self._pages is not None
        self._pages.end(holder.key_id, num_tokens)

    def _take(self, keys: Sequence[ApiKey]) -> None:
        holders = {}
        for number, key in enumerate((*self._fixed, *keys), start=1):
            key_id = int.from_bytes(key.digest[:8], "little") or 1
            is_limited = self._pages is not None and key.limits != KeyLimits()
            holders[key.digest] = Holder(key, number, key_id, is_limited)
        self._holders = holders
        if self._pages is not None:
            self._pages.set_known(frozenset(holder.key_id for holder in holders.values()))


def _stamp(file: Path | None) -> tuple[int, ...]:
    """Changes when the file, or what its symbolic links lead to, is another one or was written to."""
    if file is None:
        return ()
    try:
        found = file.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _refusal(limits: KeyLimits, use: KeyUse) -> tuple[str, int] | None:
    """Why not, and the whole seconds after which it would have been another answer."""
    most = limits.max_concurrent_requests
    if most is not None and use.in_flight >= most:
        return f"{use.in_flight} requests in flight, limit {most}", 1
    for name, limit, now, before in _rates(limits, use):
        used = _used(now, before, use.minute_age_s)
        if used + 1 > limit:
            wait_s = _wait_s(limit, now, before, use.minute_age_s)
            return f"{name} per minute: limit {limit}, used {math.ceil(used)}", max(1, math.ceil(wait_s))
    return None


def _rates(limits: KeyLimits, use: KeyUse) -> list[tuple[str, int, int, int]]:
    rates = []
    if limits.requests_per_minute is not None:
        rates.append(("requests", limits.requests_per_minute, use.requests, use.requests_before))
    if limits.tokens_per_minute is not None:
        rates.append(("tokens", limits.tokens_per_minute, use.tokens, use.tokens_before))
    return rates


def _used(now: int, before: int, age_s: float) -> float:
    """In the last 60 s, if what came in the minute before came evenly."""
    return now + before * (1 - age_s / MINUTE_S)


def _wait_s(limit: int, now: int, before: int, age_s: float) -> float:
    """Until one more fits, if nothing else comes."""
    if now + 1 <= limit:
        return MINUTE_S * (1 - (limit - 1 - now) / before) - age_s
    return MINUTE_S - age_s + MINUTE_S * (1 - (limit - 1) / now)


def _headers(limits: KeyLimits, use: KeyUse) -> Headers:
    """OpenAI's (https://platform.openai.com/docs/guides/rate-limits, 2026-11)."""
    headers: Headers = []
    for name, limit, now, before in _rates(limits, use):
        remaining = max(0, math.floor(limit - _used(now, before, use.minute_age_s)))
        reset_s = (2 if now else 1 if before else 0) * MINUTE_S - (use.minute_age_s if now or before else 0)
        headers += [
            (f"x-ratelimit-limit-{name}".encode(), str(limit).encode()),
            (f"x-ratelimit-remaining-{name}".encode(), str(remaining).encode()),
            (f"x-ratelimit-reset-{name}".encode(), _duration(reset_s).encode()),
        ]
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 0s, 42s, 1m12s."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
