"""The `openai` client before the fleet that has the real model."""

from typing import Any

import pytest
from openai import OpenAI

from tests.integration.fleet import Fleet


@pytest.fixture(scope="session")
def client(core_fleet: Fleet) -> Any:  # Any: overloads of literals do not fit requests made of variables
    with OpenAI(base_url=core_fleet.base_url + "/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def own_engine(request: pytest.FixtureRequest) -> None:
    """For what vLLM does otherwise, or not."""
    if request.config.getoption("--vllm-python"):
        pytest.skip("of the engine core alone")


@pytest.fixture(scope="session")
def model(core_fleet: Fleet) -> str:
    name: str = OpenAI(base_url=core_fleet.base_url + "/v1", api_key="unused").models.list().data[0].id
    return name
