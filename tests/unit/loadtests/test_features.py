"""The peers' table: a probe for each row, and a document that is what the data gives."""

import re
from pathlib import Path

import pytest

from loadtests.peers.features.__main__ import MODULES, PEERS, document, read_rows, summary
from loadtests.peers.features.rig import PROBES, Found, graded

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "features.md"


def test_every_row_has_a_probe_and_every_probe_a_row() -> None:
    features = [row.feature for row in read_rows()]

    assert sorted(features) == sorted(PROBES)
    assert all(module.__doc__ for module in MODULES)
    assert all(len(row.peers) == len(PEERS) and all(row.peers) for row in read_rows())


def test_the_document_is_what_the_data_and_its_own_findings_give() -> None:
    text = DOCUMENT.read_text()
    seen_on = re.search(r"features`, (.*)\.\n", text)
    cells = re.findall(r"^\| (.*?) \| \*\*(yes|partly|no)\*\*: (.*?) \| ", text, re.MULTILINE)
    found = {
        feature.replace("\\|", "|"): Found(answer, finding.replace("\\|", "|")) for feature, answer, finding in cells
    }

    assert seen_on is not None
    assert document(read_rows(), found, seen_on[1]) == text
    assert summary(read_rows(), found) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("seen", "answer"), [({"a": True, "b": True}, "yes"), ({"a": True, "b": False}, "partly"), ({"a": False}, "no")]
)
def test_what_is_seen_in_part_is_partly_there(seen: dict[str, bool], answer: str) -> None:
    assert graded(seen).answer == answer
