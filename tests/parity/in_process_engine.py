"""The engine without processes: scheduler and model runner in one call, for comparing token ids."""

from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.model_folder import read_model_folder
from config.settings import EngineSettings, ModelSettings, Settings
from engine_core.batch_state import BatchState
from engine_core.model_runner import build_runner
from engine_core.plan import Launched, StepPlan
from engine_core.process import build_drafter
from engine_core.scheduler import Scheduler
from engine_core.sequence import Sequence
from engine_core.start_stages import StartStages
from ipc.block_hash import HASH_BYTES, chain
from ipc.messages import NO_LOGPROBS, Pooling, SamplingParams
from ipc.record import Failure, Scored


class InProcessEngine:
    """One loaded model; every `generate` starts with an empty scheduler but keeps the K/V pool."""

    def __init__(
        self, folder: Path, engine: EngineSettings, *, dtype: str = "float32", max_model_len: int | None = None
    ):
        settings = Settings(
            model=ModelSettings(model=str(folder), dtype=dtype, max_model_len=max_model_len),  # type: ignore[arg-type]
            engine=engine,
        )
        model = read_model_folder(folder, settings.model)
        self.settings = engine
        self.state = BatchState(
            max_num_seqs=engine.max_num_seqs,
            max_model_len=model.max_model_len,
            block_size=engine.block_size,
            eos_token_ids=model.eos_token_ids,
            seed=engine.seed,
        )
        self.runner = build_runner(settings, model, self.state, lambda permille: None, lambda: None, StartStages())
        drafter = build_drafter(engine, self.state)
        self.scheduler = Scheduler(self.state, self.runner.num_blocks, engine.max_num_batched_tokens, drafter=drafter)
        self.scored: list[Scored] = []  # in the order of computing, of requests that stream
        self.embeddings: dict[int, NDArray[np.float32]] = {}  # by the prompt's place, of the last `generate`
        self._num_requests = 0

    def generate(
        self, prompts: Seq[Seq[int]], params: Seq[SamplingParams], poolings: Seq[Pooling] | None = None
    ) -> list[list[int]]:
        """Everything at once, as one crowd; output ids per prompt, stop ids excluded. Fails on any Failure."""
        poolings = poolings or [Pooling.NONE] * len(prompts)
        numbers = [self._add(*request) for request in zip(prompts, params, poolings, strict=True)]
        self.embeddings = {}
        outputs: dict[int, list[int]] = {number: [] for number in numbers}
        flight: tuple[StepPlan, Launched] | None = None
        while self.scheduler.has_work or flight:
            if flight is not None and self.scheduler.awaits_tokens:
                self._commit(*flight)
                flight = None
            plan, last = self.scheduler.schedule(), flight
            flight = None
            if plan is not None:
                flight = plan, self.runner.launch(plan)
                self.scheduler.advance(plan)
            if last is not None:
                self._commit(*last)
            if flight is not None and not self.runner.runs_ahead:
                self._commit(*flight)
                flight = None
            for ending in self.scheduler.take_endings():
                assert not isinstance(ending.record, Failure), ending.record
                if ending.output_ids is not None:
                    outputs[ending.record.stream] += ending.output_ids.tolist()
                if ending.embedding is not None:
                    self.embeddings[numbers.index(ending.record.stream)] = ending.embedding
            self.scheduler.take_progress()
        self.scheduler.check_integrity()
        return [outputs[number] for number in numbers]

    def _commit(self, plan: StepPlan, launched: Launched) -> None:
        tokens = self.scheduler.commit(plan, launched.result())
        self.scored += [entry for _, entry in tokens.scored]

    def _add(self, prompt: Seq[int], sampling: SamplingParams, pooling: Pooling = Pooling.NONE) -> int:
        self._num_requests += 1
        token_ids = np.array(prompt, np.int32)
        links = chain(token_ids.astype("<u4").tobytes(), self.settings.block_size)
        self.scheduler.add(
            Sequence(
                stream_id=self._num_requests,
                request_id=f"r{self._num_requests}",
                sampling=sampling,
                token_ids=token_ids,
                num_prompt_tokens=len(prompt),
                max_total_len=min(len(prompt) + sampling.max_tokens, self.state.max_model_len),
                arrival=self._num_requests,
                arrival_ns=0,
                block_links=[links[at : at + HASH_BYTES] for at in range(0, len(links), HASH_BYTES)],
                is_cacheable=self.settings.enable_prefix_caching  # as the intake does
                and bool(links)
                and pooling != Pooling.MEAN
                and sampling.num_prompt_logprobs == NO_LOGPROBS,
                is_streaming=False,
                pooling=pooling,
            )
        )
        return self._num_requests
