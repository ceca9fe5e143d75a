"""The short form of `make conformance`: our own schemas, in the form of the JSON Schema Test Suite's."""

import asyncio
from pathlib import Path

import pytest

from loadtests.conformance.generations import generate
from loadtests.conformance.instances import walk
from loadtests.conformance.suite import read_cases
from loadtests.random_model import random_model
from tests.integration.fleet import Fleet

FOLDER = Path(__file__).parents[2] / "loadtests" / "conformance"
COMPILED = read_cases(FOLDER / "cases.json", "own")
REFUSED = read_cases(FOLDER / "refused_cases.json", "refused")


def test_grammars_take_what_is_valid_and_nothing_else(model_folder: Path) -> None:
    walked = walk(COMPILED, model_folder)

    assert walked.refused == []
    assert walked.let_through == []
    assert walked.unreachable == []
    assert walked.verdicts["invalid, kept out"] > 50 and walked.verdicts["valid, taken"] > 50


def test_an_invalid_instance_that_is_let_through_is_seen(model_folder: Path) -> None:
    [case] = [case for case in COMPILED if case.description == "a boolean"]
    wrong = [instance for instance in case.instances if instance.is_valid]
    spoiled = type(case)(
        case.keyword, "spoiled", case.schema, tuple(type(i)(i.description, i.data, False) for i in wrong)
    )

    assert len(walk([spoiled], model_folder).let_through) == len(wrong)


@pytest.mark.timeout(120)
def test_answers_of_random_weights_validate_and_refusals_say_why(model_folder: Path, tmp_path: Path) -> None:
    random = random_model(model_folder, tmp_path / "model")
    flags = (str(random), "--load-format", "dummy", "--max-model-len", "1024", "--workers", "1")
    with Fleet(tmp_path / "log", *flags) as fleet:
        generated = asyncio.run(generate(fleet.port, [*COMPILED, *REFUSED], 84))

    assert generated.faults == []
    assert set(generated.refused) == {case.name for case in REFUSED}
    assert sum(generated.ended.values()) >= 50
