"""Clients of the OpenAI API in a venv of their own (`make clients`), before a fleet of the server's venv.

They may speak to the fleet and to nobody else: what a client asks of another host fails the test.
"""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.fleet import Fleet

os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # LiteLLM's price list: the one in its wheel
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server-python", help="interpreter of the venv that has the server")


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The real model, which does not learn to call tools from its template: enforced calls, and hermes' form of others."""
    log_path = tmp_path_factory.mktemp("clients") / "log"
    flags = ("--workers", "2", "--dtype", "float32", "--tool-call-parser", "hermes")
    with Fleet(log_path, *flags, python=request.config.getoption("--server-python")) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def base_url(fleet: Fleet) -> str:
    return fleet.base_url + "/v1"


@pytest.fixture(autouse=True)
def foreign_hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names that were looked up beside the fleet's; there must be none."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:  # Any: socket's own signature
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOOPBACK:
            asked.append(name)
            raise socket.gaierror(socket.EAI_NONAME, f"{name}: a test of clients speaks to the fleet alone")
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    assert asked == []
