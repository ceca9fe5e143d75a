"""A little of everything, for as long as it is needed: chats, streams, clients that leave, requests that are refused."""

import http.client
import json
import threading
from types import TracebackType
from typing import Any

DOCUMENT = "A fleet of workers serves many clients at once, and every one of them has its own core. " * 12


class BackgroundLoad:
    """`num_clients` threads, each with one connection at a time, until it is left."""

    def __init__(self, port: int, num_clients: int = 6) -> None:
        self._port = port
        self._should_stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(num_clients)]

    def __enter__(self) -> "BackgroundLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._should_stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, client: int) -> None:
        turn = 0
        while not self._should_stop.is_set():
            turn += 1
            question = {"role": "user", "content": f"{DOCUMENT} Question {turn % 5} of client {client}?"}
            chat = {"messages": [question], "max_tokens": 20 + 10 * client, "stream": client % 2 == 0}
            try:
                self._post("/v1/chat/completions", chat)
                if turn % 10 == 0:
                    self._post("/v1/completions", {"prompt": DOCUMENT, "max_tokens": 500, "stream": True}, leaves=True)
                    self._post("/v1/completions", {"prompt": "late"}, headers={"x-request-deadline-ms": "0"})
                    self._post("/v1/completions", {"prompt": "wrong", "temperature": -1})
            except (OSError, http.client.HTTPException):
                self._should_stop.wait(0.2)  # the fleet is being disturbed

    def _post(
        self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None, leaves: bool = False
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            sent = {"content-type": "application/json", **(headers or {})}
            connection.request("POST", path, json.dumps(body), sent)
            response = connection.getresponse()
            if not leaves:
                response.read()
        finally:
            connection.close()
