"""What the documents point at is there: folders and files of this checkout, and the tests they call as witnesses."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("charts/*/README.md"), *ROOT.glob("ops/*/*.md")]
)
_WITNESS = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_PATH = re.compile(r"`((?:tests|docs|ops|charts|loadtests|image)/[\w./-]+)`")
_LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")


def witnesses() -> list[tuple[str, str]]:
    found = {pair for document in DOCUMENTS for pair in _WITNESS.findall(document.read_text())}
    return sorted(found)


@pytest.mark.parametrize(("path", "test"), witnesses())
def test_a_test_that_is_named_exists(path: str, test: str) -> None:
    assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()

    missing = [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    missing += [link for link in _LINK.findall(text) if not (document.parent / link).exists()]

    assert missing == []


def test_every_row_of_the_comparison_has_its_witness() -> None:
    _, ours, shown = (ROOT / "docs" / "charts_compared.md").read_text().split("\n|---")

    assert _rows(ours) == _rows(shown)


def _rows(table: str) -> list[str]:
    return [
        line.split("|")[1].strip()
        for line in table.splitlines()[1:]
        if line.startswith("| ") and not line.startswith("| |")
    ]
