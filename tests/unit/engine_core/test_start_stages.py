"""The stages of a start."""

import json
import logging
import subprocess
import sys

import pytest

from engine_core.start_stages import StartStages

SLEEPER = """
import json, logging, time
time.sleep(0.5)
from engine_core.start_stages import StartStages
stages = StartStages()
stages.done("asleep")
stages.done("awake")
logging.basicConfig(level="INFO")
logging.getLogger().handlers[0].emit = lambda record: print(json.dumps(vars(record)))
stages.log()
"""


def test_the_clock_begins_with_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True, check=True)

    line = json.loads(ended.stdout)
    assert line["msg"] == "start stages"
    assert 0.5 <= line["asleep_s"] < 30
    assert line["awake_s"] < line["asleep_s"]


def test_stages_follow_each_other_without_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stages = StartStages()

    for stage in ("imports", "weights", "graphs"):
        stages.done(stage)
    stages.log()

    [line] = [vars(record) for record in caplog.records]
    assert line["imports_s"] + line["weights_s"] + line["graphs_s"] == pytest.approx(line["process_s"], abs=0.02)
