"""The JSON Schema Test Suite (https://github.com/json-schema-org/JSON-Schema-Test-Suite), or a file of cases in its form."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any

MAX_WRITINGS = 200


@dataclass(frozen=True)
class Instance:
    description: str
    data: Any  # JSON
    is_valid: bool


@dataclass(frozen=True)
class Case:
    keyword: str  # the suite's file
    description: str
    schema: Any  # JSON
    instances: tuple[Instance, ...]

    @property
    def name(self) -> str:
        return f"{self.keyword}: {self.description}"


def read_suite(folder: Path) -> list[Case]:
    """Every case of draft 2020-12, optional ones too."""
    tests = folder / "tests" / "draft2020-12"
    return [case for path in sorted(tests.rglob("*.json")) for case in read_cases(path, str(path.relative_to(tests)))]


def read_cases(path: Path, keyword: str) -> list[Case]:
    return [
        Case(
            keyword.removesuffix(".json"),
            group["description"],
            group["schema"],
            tuple(Instance(test["description"], test["data"], test["valid"]) for test in group["tests"]),
        )
        for group in json.loads(path.read_text())
    ]


def writings(data: Any) -> Iterator[str]:
    """One instance as JSON: as it stands, then with its keys in other orders and whole numbers without `.0`."""
    yield json.dumps(data, ensure_ascii=False)
    for other in islice(_forms(data), MAX_WRITINGS):
        yield json.dumps(other, ensure_ascii=False)


def _forms(data: Any) -> Iterator[Any]:
    if isinstance(data, dict):
        for order in permutations(data):
            for values in product(*(list(islice(_forms(data[key]), 8)) for key in order)):
                yield dict(zip(order, values, strict=True))
    elif isinstance(data, list):
        for items in product(*(list(islice(_forms(item), 8)) for item in data)):
            yield list(items)
    elif isinstance(data, float) and data.is_integer() and abs(data) < 2**53:
        yield int(data)
        yield data
    else:
        yield data
