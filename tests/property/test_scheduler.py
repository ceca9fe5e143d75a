"""The scheduler with a runner that keeps real K/V: a block remembers which tokens were computed into it.

The machine submits, aborts, replaces workers and steps in any order. The runner checks what a model would need: every
token in front of the chunk has its K/V in the sequence's blocks, computed from the very same tokens. A pool much
smaller than the sequences want forces preemption; few distinct tokens force shared prefixes.
"""

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_core.batch_state import BatchState
from engine_core.plan import RowFailure, StepPlan, StepResult
from engine_core.scheduler import Scheduler
from engine_core.sequence import NO_ROW, Sequence
from engine_core.step_output import Ending
from ipc.block_hash import HASH_BYTES, chain
from ipc.messages import SamplingParams, StreamId, generation_of, make_stream_id, number_of, slot_of
from ipc.record import Failure, FailureCode, Finish, FinishCode, pack_record

BLOCK_SIZE = 4
MAX_MODEL_LEN = 48
STOP_ID = 9


# Long enough for preemption, alike enough for shared prefixes.
prompts = st.builds(
    lambda length, tail: [0, 1, 1] * (length // 3) + tail,
    st.integers(0, MAX_MODEL_LEN - 4),
    st.lists(st.integers(0, 1), min_size=1, max_size=4),
)


def next_token(tokens: list[int]) -> int:
    """The fake model: depends on every token before, draws the stop id now and then."""
    return (sum(tokens) * 7 + len(tokens) * 3) % 10


class FakeRunner:
    """Blocks hold the tokens computed into them; attention reads all of them back and compares."""

    def __init__(self, state: BatchState, num_blocks: int) -> None:
        self.state = state
        self.kv = np.full((num_blocks, BLOCK_SIZE), -1, np.int32)
        self.occupants: dict[int, Sequence] = {}  # what a runner's cache per row would hold
        self.last_token = np.full(state.max_num_seqs, -1, np.int32)  # per row: what a device keeps to run ahead

    def run(self, plan: StepPlan, failing: set[int]) -> StepResult:
        self._refresh(plan)
        drawn = []
        for i, row in enumerate(plan.rows.tolist()):
            context, new = int(plan.context_lens[i]), int(plan.num_new_tokens[i])
            tokens = self.state.token_ids[row, : context + new].tolist()
            if i < plan.num_decodes:
                tokens[-1] = int(self.last_token[row])
            assert self._stored(row, context) == tokens[:context]
            for position in range(context, context + new):
                self.kv[self._slot(row, position)] = tokens[position]
            if plan.samples[i]:
                drawn.append(next_token(tokens))
                self.last_token[row] = drawn[-1]
        return StepResult(np.array(drawn, np.int32), dict.fromkeys(failing, RowFailure("failed by the test")))

    def _refresh(self, plan: StepPlan) -> None:
        for row in plan.freed_rows.tolist():
            self.occupants.pop(row, None)
        for row in plan.changed_rows.tolist():
            sequence = self.state.sequences[row]
            assert sequence is not None
            self.occupants[row] = sequence
        for row in plan.rows.tolist():
            assert self.occupants[row] is self.state.sequences[row]

    def _stored(self, row: int, length: int) -> list[int]:
        return [int(self.kv[self._slot(row, position)]) for position in range(length)]

    def _slot(self, row: int, position: int) -> tuple[int, int]:
        logical, offset = divmod(position, BLOCK_SIZE)
        assert logical < self.state.num_blocks[row]
        return int(self.state.block_table[row, logical]), offset


def expected_output(prompt: list[int], max_total_len: int, min_tokens: int, ignores_stop: bool) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < max_total_len:
        tokens.append(next_token(tokens))
        if tokens[-1] == STOP_ID and not ignores_stop and len(tokens) - len(prompt) >= min_tokens:
            break
    return tokens[len(prompt) :]


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(6, 20),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(6, 40),
        runs_ahead=st.booleans(),
        ageing_s=st.sampled_from([0.0, 2.0]),
    )
    def start(self, num_blocks: int, max_num_seqs: int, budget: int, runs_ahead: bool, ageing_s: float) -> None:
        self.runs_ahead = runs_ahead
        self.flight: tuple[StepPlan, StepResult] | None = None
        self.capacity = num_blocks * BLOCK_SIZE
        self.max_batched_tokens = budget
        self.state = BatchState(
            max_num_seqs=max_num_seqs, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, eos_token_ids=(STOP_ID,)
        )
        self.scheduler = Scheduler(self.state, num_blocks, budget, ageing_s)
        self.runner = FakeRunner(self.state, num_blocks)
        self.live: dict[int, Sequence] = {}
        self.prompts: dict[int, list[int]] = {}
        self.streamed: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.started: set[int] = set()
        self.aborted: set[int] = set()
        self.stopped: set[int] = set()
        self.failed_rows: set[int] = set()
        self.num_submitted = 0
        self.now_ns = 1_000_000_000

    @rule(
        prompt=prompts,
        max_tokens=st.integers(1, 30),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        is_streaming=st.booleans(),
        priority=st.integers(-1, 1),
        fair_key=st.integers(0, 2),
        slot=st.integers(0, 1),
        lifetime_s=st.none() | st.integers(0, 5),
        is_cacheable=st.booleans(),
    )
    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        min_tokens: int,
        ignore_eos: bool,
        is_streaming: bool,
        priority: int,
        fair_key: int,
        slot: int,
        lifetime_s: int | None,
        is_cacheable: bool,
    ) -> None:
        self.num_submitted += 1
        stream_id = make_stream_id(slot, 1, self.num_submitted)
        token_ids = np.array(prompt, np.int32)
        links = chain(token_ids.tobytes(), BLOCK_SIZE)
        sequence = Sequence(
            stream_id=stream_id,
            request_id="",
            sampling=SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens, ignore_eos=ignore_eos),
            token_ids=token_ids,
            num_prompt_tokens=len(prompt),
            max_total_len=min(len(prompt) + max_tokens, MAX_MODEL_LEN, self.capacity + 1),
            arrival=self.num_submitted,
            arrival_ns=self.now_ns,
            block_links=[links[at : at + HASH_BYTES] for at in range(0, len(links), HASH_BYTES)],
            is_cacheable=is_cacheable and bool(links),
            is_streaming=is_streaming,
            priority=priority,
            fair_key=fair_key,
            deadline_s=None if lifetime_s is None else self.now_ns / 1e9 + lifetime_s,
        )
        self.live[stream_id] = sequence
        self.prompts[stream_id] = prompt
        self.streamed[stream_id] = []
        self.scheduler.add(sequence)
        self._collect_ends()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        stream_id = data.draw(st.sampled_from(sorted(self.live)))
        self.aborted.add(stream_id)
        self.scheduler.abort(stream_id)
        self._collect_ends()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        stream_id = data.draw(st.sampled_from(sorted(self.live)))
        self.stopped.add(stream_id)
        self.scheduler.stop(stream_id, self.now_ns)
        self._collect_ends()

    @rule(slot=st.integers(0, 1))
    def replace_worker(self, slot: int) -> None:
        self.aborted |= {s for s in self.live if slot_of(s) == slot}
        self.scheduler.abort_slot(slot, generation=2)
        self._collect_ends()

    @rule(failing=st.sets(st.integers(0, 5), max_size=1), elapsed_s=st.integers(0, 2))
    def step(self, failing: set[int], elapsed_s: int) -> None:
        self.now_ns += elapsed_s * 1_000_000_000
        plan = self.scheduler.schedule(self.now_ns)
        flight = None
        if plan is not None:
            self._check_plan(plan)
            self.failed_rows = failing & set(plan.rows.tolist())
            self.aborted |= {self._stream_in(row) for row in self.failed_rows}
            flight = plan, self.runner.run(plan, self.failed_rows)
            self.scheduler.advance(plan)
        elif self.flight is None:
            assert not self.scheduler.has_work, "work is left, but nothing was planned"
        if not self.runs_ahead:
            self.flight, flight = flight, None
        if self.flight is not None:
            self._commit(*self.flight)
        self.flight = flight
        self._collect_ends()

    def _commit(self, plan: StepPlan, result: StepResult) -> None:
        tokens = self.scheduler.commit(plan, result, self.now_ns)
        for slot, number, token_id in zip(
            tokens.slots.tolist(), tokens.numbers.tolist(), tokens.token_ids.tolist(), strict=True
        ):
            self.streamed[make_stream_id(slot, 1, number)].append(token_id)

    def teardown(self) -> None:
        """Whatever is left ends by itself."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(3000):
            if not self.scheduler.has_work and self.flight is None:
                break
            self.step(set(), 0)
        assert not self.live
        assert self.scheduler.blocks.num_in_use == 0
        assert self.state.num_running == 0

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert set(self.scheduler.stream_ids) == self.live.keys()
            assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.live)

    @invariant()
    def links_are_the_chain_of_the_tokens(self) -> None:
        for sequence in getattr(self, "live", {}).values():
            is_running = sequence.row != NO_ROW
            tokens = self.state.token_ids[sequence.row] if is_running else sequence.token_ids
            links = chain(tokens.tobytes(), BLOCK_SIZE)
            assert links.startswith(b"".join(sequence.block_links))

    def _check_plan(self, plan: StepPlan) -> None:
        assert len(set(plan.rows.tolist())) == len(plan.rows)
        assert plan.num_tokens == plan.num_new_tokens.sum() <= self.max_batched_tokens
        assert (plan.num_new_tokens[: plan.num_decodes] == 1).all()
        assert plan.samples[: plan.num_decodes].all()
        assert (plan.num_new_tokens >= 1).all()
        for row in plan.rows.tolist():
            sequence = self.state.sequences[row]
            assert sequence is not None
            if sequence.deadline_s is not None and sequence.deadline_s <= self.now_ns / 1e9:
                assert sequence.first_scheduled_ns / 1e9 < sequence.deadline_s

    def _stream_in(self, row: int) -> int:
        sequence = self.state.sequences[row]
        assert sequence is not None
        return sequence.stream_id

    def _collect_ends(self) -> None:
        endings: dict[StreamId, Ending] = {}
        for ending in self.scheduler.take_endings():
            stream_id = make_stream_id(ending.slot, 1, ending.record.stream)
            assert stream_id not in endings
            endings[stream_id] = ending
            if isinstance(ending.record, Finish):
                pack_record(finishes=[ending.record])  # every field fits its word
        started, ended = self.scheduler.take_progress()
        assert not self.started & set(started)
        self.started |= set(started)
        assert len(set(ended)) == len(ended)
        for stream_id in map(StreamId, ended):
            assert stream_id not in self.ended, "a stream ended twice"
            self.ended.add(stream_id)
            sequence = self.live.pop(stream_id)
            if stream_id not in endings:
                assert stream_id in self.aborted
                continue
            ending = endings.pop(stream_id)
            if isinstance(ending.record, Finish) and ending.record.code == FinishCode.ABORT:
                assert stream_id in self.stopped
            elif isinstance(ending.record, Finish):
                self._check_finish(sequence, ending.record, ending.output_ids)
            else:
                self._check_failure(sequence, ending.record)
        assert not endings, "an end without a word to the broker"

    def _check_failure(self, sequence: Sequence, failure: Failure) -> None:
        if failure.code == FailureCode.DEADLINE:
            assert sequence.stream_id not in self.started
            assert sequence.deadline_s is not None and sequence.deadline_s <= self.now_ns / 1e9
        elif failure.code == FailureCode.TOO_LONG:
            assert sequence.num_prompt_tokens >= min(MAX_MODEL_LEN, self.capacity + 1)
        else:
            assert failure.message == "failed by the test" and sequence.stream_id in self.aborted

    def _check_finish(self, sequence: Sequence, finish: Finish, bulk: object) -> None:
        prompt = self.prompts[sequence.stream_id]
        expected = expected_output(
            prompt, sequence.max_total_len, sequence.sampling.min_tokens, sequence.sampling.ignore_eos
        )
        assert finish.num_output_tokens == len(expected)
        assert finish.num_cached_tokens < len(prompt)
        assert finish.stream == number_of(sequence.stream_id) and generation_of(sequence.stream_id) == 1
        visible = expected[:-1] if finish.stop_token_id == STOP_ID else expected
        if sequence.is_streaming:
            assert bulk is None
            assert self.streamed[sequence.stream_id] == visible
        else:
            assert isinstance(bulk, np.ndarray)
            assert bulk.tolist() == visible
            assert self.streamed[sequence.stream_id] == []


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
