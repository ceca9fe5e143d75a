"""What differs between two answers, and which of the differences are accepted (accepted.toml)."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.oracle.answers import Answer

ACCEPTED = Path(__file__).with_name("accepted.toml")
TOLERANCE = 1e-3  # of logprobs; other fractions there are none
_NOTHING = object()


@dataclass(frozen=True)
class Difference:
    """At a path of names and numbers with dots between. Values are JSON; "absent" where a side has none."""

    case: str
    path: str
    ours: str
    vllm: str

    def __str__(self) -> str:
        return f"{self.case}: {self.path}: {self.ours[:200]} where vLLM has {self.vllm[:200]}"


@dataclass(frozen=True)
class Row:
    """Patterns as a shell has them; one of several cases suffices."""

    cases: tuple[str, ...]
    path: str
    ours: str
    vllm: str
    reason: str

    def accepts(self, difference: Difference) -> bool:
        return (
            any(fnmatchcase(difference.case, case) for case in self.cases)
            and fnmatchcase(difference.path, self.path)
            and fnmatchcase(difference.ours, self.ours)
            and fnmatchcase(difference.vllm, self.vllm)
        )


def accepted_rows() -> list[Row]:
    rows = tomllib.loads(ACCEPTED.read_text())["row"]
    return [
        Row(tuple(row["cases"]), row["path"], row.get("ours", "*"), row.get("vllm", "*"), row["reason"]) for row in rows
    ]


def differences(case: str, ours: Answer, theirs: Answer) -> list[Difference]:
    """Of answers with unlike statuses only that; the words of errors are each server's own."""
    if ours.status != theirs.status:
        return [Difference(case, "status", str(ours.status), str(theirs.status))]
    found = [*_differences(case, "content_type", ours.content_type, theirs.content_type)]
    return [*found, *_differences(case, "body", ours.body, theirs.body)]


def _differences(case: str, path: str, ours: Any, theirs: Any) -> Iterator[Difference]:  # Any: JSON
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            yield from _differences(case, f"{path}.{key}", ours.get(key, _NOTHING), theirs.get(key, _NOTHING))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(case, f"{path}.{place}", our, their)
    elif not _is_alike(path, ours, theirs):
        yield Difference(case, path, _shown(ours), _shown(theirs))


def _is_alike(path: str, ours: Any, theirs: Any) -> bool:
    if path.endswith("error.message"):
        return isinstance(ours, str) and isinstance(theirs, str)
    if isinstance(ours, float) and isinstance(theirs, float | int) and not isinstance(theirs, bool):
        return abs(ours - theirs) <= TOLERANCE
    return type(ours) is type(theirs) and ours == theirs


def _shown(value: Any) -> str:
    return "absent" if value is _NOTHING else json.dumps(value, ensure_ascii=False)
