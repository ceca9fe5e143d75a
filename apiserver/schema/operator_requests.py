"""Bodies of what an operator asks of the fleet, as vLLM 0.33 has them."""

import re

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest
from apiserver.schema.requests import decode_with
from ipc.messages import ProfileOptions

MAX_REQUEST_IDS = 10_000
_PREFIX = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_OF_ANSWERS = re.compile(r"\A(?:chatcmpl-|cmpl-|generate-tokens-|msg_|resp_)")


class AbortRequest(Struct, kw_only=True):
    """Ids that clients gave their requests, or those of the answers."""

    request_ids: list[str] | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """As the engines know them: an answer's id is its request's behind the name of its kind. Raises InvalidRequest."""
        given = self.request_ids or []
        if len(given) > MAX_REQUEST_IDS:
            raise InvalidRequest(
                f"request_ids has {len(given)} entries, at most {MAX_REQUEST_IDS} are taken", param="request_ids"
            )
        return tuple(dict.fromkeys(name for text in given for name in (text, _OF_ANSWERS.sub("", text))))


class StartProfileRequest(Struct, kw_only=True):
    profile_prefix: str | None = None
    delay_iterations: int | None = None
    max_iterations: int | None = None

    @property
    def options(self) -> ProfileOptions:
        """Raises InvalidRequest."""
        prefix = self.profile_prefix
        if prefix is not None and _PREFIX.fullmatch(prefix) is None:
            raise InvalidRequest(
                "profile_prefix must be 1 to 128 letters, digits, dots, dashes and underscores, the first of them a "
                "letter or a digit",
                param="profile_prefix",
            )
        for name in ("delay_iterations", "max_iterations"):
            if (getattr(self, name) or 0) < 0:
                raise InvalidRequest(f"{name} must not be negative", param=name)
        return ProfileOptions(
            prefix="" if prefix is None else prefix + "_",
            delay_iterations=self.delay_iterations or 0,
            max_iterations=self.max_iterations or 0,
        )


_abort = msgspec.json.Decoder(AbortRequest)
_start_profile = msgspec.json.Decoder(StartProfileRequest)


def decode_abort(body: bytes) -> AbortRequest:
    """Raises InvalidRequest, as its sibling does."""
    return decode_with(_abort, body)


def decode_start_profile(body: bytes) -> StartProfileRequest:
    """No body is one that asks for nothing."""
    return decode_with(_start_profile, body or b"{}")
