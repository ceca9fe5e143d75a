"""Locust's part of the load tests: users and arrivals of a scenario, streams read as they come, a report at the end.

    make locust SCENARIO=chat HOST=http://127.0.0.1:8000
    locust -f loadtests/locustfile.py --headless --scenario burst --host http://127.0.0.1:8000 [-u 50 -t 30s] [--report out.md]

One process, without the web page. What is measured, and how, stands in loadtests.sse_meter and loadtests.load_figures.
Exit code 3: there is no report (the load generator was busier than its core bears, or nothing came). 1: answers failed.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser, events, task

from loadtests.load_figures import LoadFigures, refusal_or_none, render
from loadtests.scenario import Questions, Scenario, body_of, read_scenario
from loadtests.sse_meter import StreamMeter

NO_REPORT = 3
STOP_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 4096  # of the arrivals of one open loop
_numbers = itertools.count()  # of users


@events.init_command_line_parser.add_listener
def add_flags(parser: Any) -> None:  # Any: Locust's parser
    parser.add_argument("--scenario", default="chat", help="of loadtests/scenarios, or the path of a file")
    parser.add_argument("--model", default="", help="sent with every request; servers with one model need none")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", ""), help="sent as a bearer token")
    parser.add_argument(
        "--seed", default=f"{time.time():.0f}", help="of the questions; each run asks others by default"
    )
    parser.add_argument("--report", type=Path, help="file for the report; else it is printed")


@events.init.add_listener
def on_init(environment: Any, **_: Any) -> None:  # Any: Locust is without types
    options = environment.parsed_options
    for flag in ("csv_prefix", "html_file", "processes", "master", "worker"):
        if getattr(options, flag, None):
            sys.exit(f"{flag} is not for this file: one process, and no report that could not be refused")
    try:
        environment.scenario = read_scenario(options.scenario)
    except ValueError as error:
        sys.exit(str(error))
    if not options.headless or not options.host:
        sys.exit("needs --headless and --host")
    environment.figures = LoadFigures()
    environment.stop_timeout = STOP_TIMEOUT_S  # streams that run are let to their end
    options.only_summary = True
    if environment.scenario.arrivals_per_s:
        if options.num_users not in (None, 1):
            sys.exit(f"{options.scenario} has arrivals instead of users: no -u")
        options.num_users = 1
    else:
        options.num_users = options.num_users or environment.scenario.users
    options.spawn_rate = options.spawn_rate or 100
    if not options.run_time:
        gevent.spawn_later(environment.scenario.seconds, environment.runner.quit)


@events.test_start.add_listener
def on_test_start(environment: Any, **_: Any) -> None:
    environment.started_s, environment.started_cpu_s = time.perf_counter(), time.process_time()


@events.test_stopping.add_listener
def on_test_stopping(environment: Any, **_: Any) -> None:
    asked_s = time.perf_counter() - environment.started_s
    environment.cpu_share = (time.process_time() - environment.started_cpu_s) / asked_s


@events.quitting.add_listener
def on_quitting(environment: Any, **_: Any) -> None:
    figures: LoadFigures = environment.figures
    refusal = refusal_or_none(figures, environment.cpu_share)
    if refusal is not None:
        environment.process_exit_code = NO_REPORT
        environment.stats.clear_all()  # Locust prints its own tables behind this
        print(refusal, file=sys.stderr)
        return
    environment.process_exit_code = 1 if figures.num_failed else 0
    options = environment.parsed_options
    title = f"`{options.scenario}`: {environment.scenario.description} ({options.host}, seed {options.seed})"
    text = render(title, figures, environment.cpu_share, time.perf_counter() - environment.started_s)
    if options.report:
        options.report.write_text(text)
    else:
        print(text)


class ScenarioUser(FastHttpUser):
    """One user of the scenario; or, where it has arrivals, all of them."""

    concurrency = MAX_CONNECTIONS
    network_timeout = connection_timeout = 120.0

    def on_start(self) -> None:
        self.scenario: Scenario = self.environment.scenario
        self.questions = Questions(self.scenario, f"{self.environment.parsed_options.seed} {next(_numbers)}")
        self.arrived = Group()
        self.next_arrival_s = time.perf_counter()

    def on_stop(self) -> None:
        self.arrived.join(STOP_TIMEOUT_S)

    @task
    def act(self) -> None:
        if self.scenario.arrivals_per_s:
            self.next_arrival_s += self.questions.until_arrival_s()
            gevent.sleep(max(0.0, self.next_arrival_s - time.perf_counter()))
            self.arrived.spawn(self.ask, self.next_arrival_s)
            return
        if self.scenario.burst_every_s:
            gevent.sleep(self.scenario.burst_every_s - time.time() % self.scenario.burst_every_s)
        answer = self.ask(time.perf_counter())
        if answer is not None:
            self.questions.on_answer(answer)

    def wait_time(self) -> float:
        """Between two acts."""
        return self.questions.pause_s()

    def ask(self, due_at_s: float) -> str | None:
        """The answer's text; None: it failed or was left."""
        figures: LoadFigures = self.environment.figures
        options = self.environment.parsed_options
        body = json.dumps(body_of(self.scenario, self.questions.next(), options.model))
        headers = {"content-type": "application/json"}
        if options.api_key:
            headers["authorization"] = f"Bearer {options.api_key}"
        leaves_after = self.scenario.leave_after_events if self.questions.will_leave() else None
        meter = StreamMeter(due_at_s)
        with self.client.post(
            "/v1/chat/completions", data=body, headers=headers, stream=True, catch_response=True, name="until headers"
        ) as response:
            try:
                if response.status_code != 200:
                    raise ValueError(f"status {response.status_code}")
                has_left = read(response._response, meter, leaves_after)
                if has_left:
                    figures.on_left(meter)
                else:
                    figures.on_answer(meter)
            except (ValueError, OSError) as error:
                figures.on_failure()
                response.failure(str(error))
                return None
            response.success()
        self.fire_rows(meter, has_left=has_left)
        return None if has_left else "".join(meter.text)

    def fire_rows(self, meter: StreamMeter, *, has_left: bool) -> None:
        """For Locust's own table, in milliseconds."""
        rows = {"ttft": meter.ttft_s}
        if not has_left:
            rows |= {"longest gap": max(meter.gaps_s, default=None), "whole answer": meter.e2e_s}
        for name, seconds in rows.items():
            if seconds is not None:
                self.environment.events.request.fire(
                    request_type="SSE", name=name, response_time=seconds * 1e3, response_length=0, exception=None,
                    context={},
                )  # fmt: skip


def read(stream: Any, meter: StreamMeter, leaves_after: int | None) -> bool:
    """Event by event as they come; true when the connection was closed before the end. Any: Locust's response in its raw
    form, whose own iterators wait for 1024 bytes."""
    while event := stream.readline(b"\n\n"):
        meter.on_event(event, time.perf_counter())
        if leaves_after is not None and meter.num_events >= leaves_after:
            stream.release()
            return True
    return False
