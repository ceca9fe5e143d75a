"""The real engine in this process: intake, scheduler, runner, outbox and a ring that is read every turn. Only the broker is
a list. What is measured is all the host work of a step, without the server around it."""

import time
from collections import deque

import numpy as np
import torch
from numpy.typing import ArrayLike

from config.settings import EngineSettings, ModelSettings, Settings
from engine_core.batch_state import BatchState
from engine_core.cuda_runner import CudaRunner
from engine_core.engine import Engine
from engine_core.grammar import GrammarCompiler
from engine_core.intake import Intake
from engine_core.metrics import EngineMetrics
from engine_core.model_runner import build_runner
from engine_core.outbox import Outbox
from engine_core.process import build_drafter
from engine_core.scheduler import Scheduler
from engine_core.start_stages import StartStages
from ipc.block_hash import chain
from ipc.fleet_page import FleetPage
from ipc.messages import FromEngine, Generate, SamplingParams, make_stream_id
from ipc.metrics_page import create_metrics_segment
from ipc.record import unpack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from ipc.sockets import Inbound
from loadtests.gpu import shapes

RING_BYTES = 1 << 20


class Inbox:
    """What an engine hears and says, without a broker."""

    def __init__(self) -> None:
        self.waiting: deque[Inbound] = deque()

    def receive(self, timeout_ms: int) -> list[Inbound]:
        inbound = list(self.waiting)
        self.waiting.clear()
        return inbound

    def send(self, message: FromEngine) -> None:
        pass


class SilentBell:
    def ring(self) -> None:
        pass


class EngineRig:
    """A loaded and warm engine for one shape."""

    def __init__(self, shape: str, settings: EngineSettings, max_model_len: int) -> None:
        started_s = time.monotonic()
        model = shapes.in_memory(shape, max_model_len)
        state = BatchState(
            max_num_seqs=settings.max_num_seqs, max_model_len=max_model_len, block_size=settings.block_size
        )
        whole = Settings(model=ModelSettings(load_format="dummy"), engine=settings)
        runner = build_runner(whole, model, state, lambda _permille: None, lambda: None, StartStages())
        assert isinstance(runner, CudaRunner)
        self.runner = runner
        self.runner.warm_up()
        self.start_s = time.monotonic() - started_s
        self.scheduler = Scheduler(
            state, runner.num_blocks, settings.max_num_batched_tokens, drafter=build_drafter(settings, state)
        )
        self.inbox = Inbox()
        view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
        format_ring(view, RING_BYTES)
        self._reader = RingReader(view, 1)
        outbox = Outbox([RingWriter(view)], [SilentBell()])
        page = FleetPage.create_segment(1, 1)
        metrics = create_metrics_segment("engine")
        self.engine = Engine(
            index=0, generation=1, socket=self.inbox, scheduler=self.scheduler, runner=runner, outbox=outbox,
            intake=Intake(
                self.scheduler, vocab_size=model.vocab_size, enable_prefix_caching=True,
                reader_generation=outbox.reader_generation,
                grammars=GrammarCompiler(model.tokenizer_path, model.vocab_size, model.eos_token_ids),
            ),
            cell=FleetPage(page.view).engines[0],
            metrics=EngineMetrics(
                metrics.view, model_name=shape, engine=0, block_size=settings.block_size, num_blocks=runner.num_blocks,
                num_draft_places=len(self.scheduler.counts.drafts.accepted_per_place),
            ),
        )  # fmt: skip
        self._keep = page, metrics
        self._block_size = settings.block_size
        self._num_requests = 0
        self.num_tokens = 0
        self.num_finished = 0

    def submit(self, prompt: ArrayLike, sampling: SamplingParams, *, is_cached: bool = False) -> None:
        """`is_cached`: it may come from the prefix cache, and stays there."""
        self._num_requests += 1
        ids = np.array(prompt, "<u4").tobytes()
        message = Generate(
            stream_id=make_stream_id(0, 1, self._num_requests),
            request_id="r",
            sampling=sampling,
            block_hashes=chain(ids, self._block_size) if is_cached else b"",
        )
        self.inbox.waiting.append(Inbound(message, ids))

    def turn(self) -> None:
        self.engine.turn()
        for payload in self._reader.poll():
            record = unpack_record(payload)
            assert not record.failures, record.failures
            self.num_tokens += len(record.tokens) + len(record.scored)
            self.num_finished += len(record.finishes)
        self._reader.release()

    def run(self) -> float:
        """Until everything that was submitted has ended; seconds."""
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        last = self._num_requests
        while self.num_finished < last:
            self.turn()
        return time.perf_counter() - started_s
