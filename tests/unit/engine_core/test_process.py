"""The engine as a real process: boot, serve through a real broker and a real ring, stop."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import EngineSettings, Settings
from engine_core import early_context, model_runner
from engine_core.batch_state import BatchState
from engine_core.errors import CannotBoot
from engine_core.process import _build_runner, check_pool
from engine_core.sim import SimRunner
from engine_core.start_stages import StartStages
from ipc.broker import Broker
from ipc.doorbell import Doorbell
from ipc.fleet_page import FleetPage, State
from ipc.handles import BrokerHandles, EngineHandles
from ipc.messages import Abort, Envelope, Generate, Kind, SamplingParams, make_stream_id
from ipc.metrics_page import create_metrics_segment
from ipc.record import FinishCode, StepRecord, unpack_record
from ipc.ring import RingReader, format_ring, ring_segment_bytes
from ipc.segment import Segment
from ipc.sockets import WorkerSocket

PROGRAM = """
import json, logging, sys
import msgspec
from config.model_folder import ModelFolder
from config.settings import EngineSettings, Settings
from engine_core import process
from ipc.handles import EngineHandles

handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(levelname)s %(message)s %(reason)s", defaults={"reason": ""}))
logging.basicConfig(level="INFO", handlers=[handler])
settings = Settings(engine=EngineSettings(**json.loads(sys.argv[1])))
model = msgspec.json.decode(sys.argv[2], type=ModelFolder)
process.run(settings, model, msgspec.json.decode(sys.argv[3], type=EngineHandles))
assert "torch" not in sys.modules
"""
RING_BYTES = 1 << 16
DEADLINE_S = 30
WORDS = {"Ġhello": 0, "Ġworld": 1}


def model_folder(path: Path) -> ModelFolder:
    return ModelFolder(
        path=str(path), architecture="X", vocab_size=50, max_model_len=64, eos_token_ids=(5,), bos_token_id=None,
        served_names=("m",), chat_template=None, sampling_defaults=SamplingDefaults(), hf_config={},
    )  # fmt: skip


class Fleet:
    """A broker in this process, an engine in its own, and a worker's socket and ring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.page_segment = FleetPage.create_segment(num_workers=1, num_engines=1)
        self.page = FleetPage(self.page_segment.view)
        self.ring = Segment.create("ring", ring_segment_bytes(RING_BYTES))
        format_ring(self.ring.view, RING_BYTES)
        self.doorbell = Doorbell.create()
        self.metrics = create_metrics_segment("engine")
        self.reader = RingReader(self.ring.view, 1)
        self.broker = Broker(
            BrokerHandles(
                generation=1,
                model_name="m",
                fleet_fd=self.page_segment.fd,
                metrics_fd=create_metrics_segment("broker").fd,
                bell_fd=Doorbell.create().fd,
                beat_s=0.25,
                worker_endpoint=f"ipc://{folder}/workers",
                engine_endpoint=f"ipc://{folder}/engines",
                tap_endpoint=f"ipc://{folder}/tap",
                num_engines=1,
                max_num_seqs=4,
                max_num_queued_reqs=10,
                max_num_queued_tokens=1000,
            )
        )
        self.page.workers[0].begin_generation(1)
        self.page.workers[0].mark_alive(1)
        self.worker = WorkerSocket(f"ipc://{folder}/workers", 0, 1)
        self.records: list[StepRecord] = []
        self.process: subprocess.Popen[str] | None = None

    def start_engine(self, vocab: dict[str, int]) -> "subprocess.Popen[str]":
        (self.folder / "tokenizer.json").write_bytes(msgspec.json.encode({"model": {"vocab": vocab}}))
        model = model_folder(self.folder)
        handles = EngineHandles(
            index=0,
            generation=1,
            ring_fds=(self.ring.fd,),
            doorbell_fds=(self.doorbell.fd,),
            fleet_fd=self.page_segment.fd,
            metrics_fd=self.metrics.fd,
            broker_endpoint=f"ipc://{self.folder}/engines",
        )
        settings = {"engine": "sim", "sim_step_ms": 1, "max_num_seqs": 4}
        self.page.engines[0].begin_generation(1)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *(msgspec.json.encode(a).decode() for a in (settings, model, handles))],
            pass_fds=(self.ring.fd, self.doorbell.fd, self.page_segment.fd, self.metrics.fd),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.page.engines[0].mark_alive(self.process.pid)
        return self.process

    def until(self, is_reached: Callable[[], bool]) -> None:
        """Turn the broker and read the ring until the condition holds."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not is_reached():
            assert time.monotonic() < deadline_s, "condition not reached"
            self.broker.turn()
            self.worker.receive()
            self.records += [unpack_record(payload) for payload in self.reader.poll()]
            self.reader.release()

    def until_ready(self) -> None:
        self.until(lambda: self.page.engines[0].state == State.READY and 0 in self.broker._admission.engines)

    def generate(self, number: int, max_tokens: int) -> int:
        stream_id = make_stream_id(0, 1, number)
        message = Generate(stream_id=stream_id, request_id="r", sampling=SamplingParams(max_tokens=max_tokens))
        prompt = np.array([1, 2, 3], "<u4").tobytes()
        self.worker.send(Envelope(Kind.GENERATE, stream_id, 3, max_tokens), message, prompt)
        self.worker.flush()
        return stream_id

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.worker.close()
        self.broker.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


def test_a_request_travels_there_and_back_and_sigterm_ends_with_zero(fleet: Fleet) -> None:
    process = fleet.start_engine(WORDS)
    fleet.until_ready()

    fleet.generate(1, max_tokens=5)
    fleet.until(lambda: any(record.finishes for record in fleet.records))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0, log
    assert sum(len(record.tokens) for record in fleet.records) == 5
    assert fleet.records[-1].finishes[0].code == FinishCode.LENGTH
    assert fleet.page.engines[0].steps == 5
    assert log.splitlines() == ["INFO start stages ", "INFO engine ready ", "INFO engine stopped "]


def test_an_abort_reaches_the_engine_and_ends_the_request_at_the_broker(fleet: Fleet) -> None:
    fleet.start_engine(WORDS)
    fleet.until_ready()
    stream_id = fleet.generate(1, max_tokens=60)
    fleet.until(lambda: bool(fleet.records))

    fleet.worker.send(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id))
    fleet.worker.flush()

    fleet.until(lambda: fleet.broker._admission.engine_of(stream_id) is None)
    assert not any(record.finishes for record in fleet.records)


def test_what_the_operator_must_fix_is_one_line_and_exit_code_three(fleet: Fleet) -> None:
    process = fleet.start_engine({"!": 0})

    _, log = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 3
    (line,) = log.splitlines()
    assert line.startswith("ERROR engine cannot boot ") and "tokenizer.json has no plain word" in line
    assert fleet.page.engines[0].state == State.STARTING


@pytest.mark.parametrize(("override", "boots"), [(None, False), (2, True)])
def test_a_pool_below_one_sequence_boots_only_when_the_operator_set_it(override: int | None, boots: bool) -> None:
    settings = Settings(engine=EngineSettings(num_gpu_blocks_override=override))
    state = BatchState(max_num_seqs=1, max_model_len=64, block_size=16)
    runner = SimRunner(state, script=np.ones(1, np.int32), num_blocks=2, step_ms=0, prefill_us_per_token=0)
    model = model_folder(Path("/nowhere"))

    if boots:
        check_pool(settings, model, runner)
    else:
        with pytest.raises(CannotBoot, match="holds 32 tokens, one sequence may have 64"):
            check_pool(settings, model, runner)


def test_the_engine_s_index_says_which_gpu_is_opened_and_which_is_computed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(early_context, "open_beside", told.append)
    monkeypatch.setattr(model_runner, "build_runner", lambda *_of_all, index: told.append(index))
    state = BatchState(max_num_seqs=4, max_model_len=64, block_size=16)

    _build_runner(Settings(), model_folder(tmp_path), state, 3, lambda _permille: None, lambda: None, StartStages())

    assert told == [3, 3]
