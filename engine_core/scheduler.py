"""Continuous batching: which tokens the next forward pass computes, and what its result means. No torch here.

One round is `schedule`, launching the runner, `advance`, and `commit` once the tokens are known. Where the runner runs
ahead, the next round's `schedule` and `advance` come before this one's `commit`: what a pass draws is counted when it is
launched and known later, and a sequence that ends on it has computed one token too many, which nobody gets.

Decodes come first, one token each; what is left of `max_batched_tokens` goes to prefill chunks (engine_core.prefills), by
rank: priority, then arrival. When a decode finds no block, the running sequence of the last rank gives its blocks back and
waits to be computed again (most of it from the prefix cache, as a rule). The first rank is never preempted, so something
always ends.

Every sequence ends exactly once: as an `Ending` (finish or failure, for the worker) or, aborted, without one; its
stream id is reported in `Progress.ended` either way.
"""

import time
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from engine_core.batch_state import BatchState
from engine_core.block_manager import BlockManager
from engine_core.drafting import DraftCounts, Drafter, counting_up
from engine_core.plan import Int32Array, Rows, StepPlan, StepResult, TokenScores
from engine_core.prefills import Prefills
from engine_core.prefix_publisher import PrefixPublisher
from engine_core.sequence import NO_ROW, Sequence, SequenceState
from engine_core.step_output import NO_TOKENS, Ending, SampledTokens, finish_record, scored
from engine_core.waiting_queue import WaitingQueue
from ipc.messages import generation_of, slot_of
from ipc.record import NO_STOP_TOKEN, Failure, FailureCode, FinishCode, Scored


@dataclass(slots=True)
class SchedulerCounts:
    """Ever-growing, for the metrics."""

    num_preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # prompt tokens found
    drafts: DraftCounts = field(default_factory=DraftCounts)


class Scheduler:
    """The waiting and running sequences of one engine. Owns the rows of `state` and the blocks."""

    def __init__(
        self,
        state: BatchState,
        num_blocks: int,
        max_batched_tokens: int,
        priority_ageing_s: float = 0.0,
        drafter: Drafter | None = None,
    ) -> None:
        """With a `drafter` the runner must take plans with drafts; see `awaits_tokens`."""
        self.state = state
        self.blocks = BlockManager(num_blocks)
        self._prefixes = PrefixPublisher(state, self.blocks.cache)
        self.counts = SchedulerCounts(
            drafts=DraftCounts(accepted_per_place=[0] * (drafter.max_tokens if drafter else 0))
        )
        self.drafter = drafter  # benchmarks change it between requests
        self._max_batched_tokens = max_batched_tokens
        self._block_size = state.block_size
        self._sequences: dict[int, Sequence] = {}  # by stream id, everything that has not ended
        self._waiting = WaitingQueue(priority_ageing_s)
        self._deadlines: list[tuple[float, int]] = []  # heap of (deadline_s, stream id)
        self._prefills = Prefills(state, self.blocks, self._prefixes, self._waiting, self._note_start)
        self._endings: list[Ending] = []
        self._started: list[int] = []
        self._ended: list[int] = []
        self._num_in_flight = 0  # plans advanced and not committed

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def awaits_tokens(self) -> bool:
        """Whether to `commit` the pass under way before the next `schedule`: rows may have drafts, of tokens that are known."""
        return self.drafter is not None and self.drafter.pace.is_awake

    @property
    def num_running(self) -> int:
        return self.state.num_running

    @property
    def num_waiting(self) -> int:
        return len(self._sequences) - self.state.num_running

    @property
    def stream_ids(self) -> list[int]:
        """Every stream that has not ended."""
        return list(self._sequences)

    # ── sequences come and go ────────────────────────────────────────────────────────────────────────────────────

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in. One that can never fit fails at once."""
        if len(sequence.token_ids) >= sequence.max_total_len and sequence.num_delivered:
            self._end_complete(sequence)
            return
        if len(sequence.token_ids) >= sequence.max_total_len:
            capacity = self.blocks.num_blocks * self._block_size
            message = (
                f"a prompt of {sequence.num_prompt_tokens} tokens leaves no room for output: the context holds "
                f"{self.state.max_model_len} tokens, the KV cache {capacity}"
            )
            self.refuse(sequence, FailureCode.TOO_LONG, message)
            return
        self._sequences[sequence.stream_id] = sequence
        self._waiting.push(sequence)
        if sequence.deadline_s is not None:
            heappush(self._deadlines, (sequence.deadline_s, sequence.stream_id))

    def has(self, stream_id: int) -> bool:
        """Whether this stream came in and has not ended."""
        return stream_id in self._sequences

    def refuse(self, sequence: Sequence, code: FailureCode, message: str) -> None:
        """End a sequence that was never added."""
        self._endings.append(Ending(sequence.slot, Failure(sequence.number, code, message)))
        self.drop(sequence.stream_id)

    def _end_complete(self, sequence: Sequence) -> None:
        """Its client has all of it but the finish, which was lost with another engine."""
        num_output_tokens = len(sequence.token_ids) - sequence.num_prompt_tokens
        finish = finish_record(
            sequence, FinishCode.LENGTH, num_output_tokens, NO_STOP_TOKEN, time.monotonic_ns()
        )  # fmt: skip
        self._endings.append(Ending(sequence.slot, finish))
        self.drop(sequence.stream_id)

    def drop(self, stream_id: int) -> None:
        """Report the end of a stream that was never added and that nobody reads."""
        self._ended.append(stream_id)

    def abort(self, stream_id: int) -> None:
        """Nobody wants this stream any more. Unknown ones have ended already."""
        sequence = self._sequences.get(stream_id)
        if sequence is not None:
            self._end(sequence)

    def stop(self, stream_id: int, now_ns: int | None = None) -> None:
        """Its worker has found a stop string, or an operator wants it: end it now, with a finish that has its counts."""
        sequence = self._sequences.get(stream_id)
        if sequence is None:
            return  # its own finish is on the way
        finish = finish_record(
            sequence,
            FinishCode.ABORT,
            self._num_output_tokens(sequence),
            NO_STOP_TOKEN,
            now_ns or time.monotonic_ns(),
        )
        self._endings.append(Ending(sequence.slot, finish))
        self._end(sequence)

    def stop_requests(self, request_ids: frozenset[str]) -> int:
        """An operator ends the requests of these ids, or all where there is none; returns how many those were."""
        found = [s for s in self._sequences.values() if not request_ids or s.request_id in request_ids]
        for sequence in found:
            self.stop(sequence.stream_id)
        return len({sequence.request_id for sequence in found})

    def abort_slot(self, slot: int, generation: int) -> None:
        """The worker in this slot is of another generation now: older streams have no reader."""
        for stream_id in self.stream_ids:
            if slot_of(stream_id) == slot and generation_of(stream_id) != generation & 0xFFFF:
                self.abort(stream_id)

    def fail_slot(self, slot: int, code: FailureCode, message: str) -> None:
        """End every stream of one worker with the same failure."""
        for sequence in list(self._sequences.values()):
            if sequence.slot == slot:
                self._fail(sequence, code, message)

    def fail_plan(self, plan: StepPlan, message: str) -> None:
        """The whole pass failed: so do its sequences, and nobody else's."""
        self._num_in_flight -= 1
        for row in plan.rows[self.state.tenancy[plan.rows] == plan.tenancy].tolist():
            self._fail(self._sequence_in(row), FailureCode.INTERNAL, message)

    def take_endings(self) -> list[Ending]:
        """Ends since the last call, for the outbox."""
        endings, self._endings = self._endings, []
        return endings

    def take_progress(self) -> tuple[list[int], list[int]]:
        """Stream ids that left the waiting queue for the first time, and that ended, since the last call."""
        started, self._started = self._started, []
        ended, self._ended = self._ended, []
        return started, ended

    # ── before the forward pass ──────────────────────────────────────────────────────────────────────────────────

    def schedule(self, now_ns: int | None = None) -> StepPlan | None:
        """Choose the tokens of one forward pass: decodes first, then prefill chunks. None when there is nothing to do, or
        nothing before the pass under way is committed.

        `now_ns` is CLOCK_MONOTONIC.
        """
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        state = self.state
        if self._deadlines:
            self._expire(now_ns)
        num_preemptions = self.counts.num_preemptions
        rows = np.flatnonzero(state.is_decoding & (state.num_tokens < state.max_total_len))
        growing = rows[state.num_computed[rows] >= state.num_blocks[rows] * self._block_size]
        if len(growing) > self.blocks.num_available:
            if self._num_in_flight:
                return None  # who is preempted must be known to the last token
            rows = self._grow_by_force(rows, growing)
        elif len(growing):
            self._grow(growing)
        budget = self._max_batched_tokens - len(rows)
        num_drafts = None
        if self.drafter is not None and len(rows):
            self.drafter.pace.begin_step(len(rows), now_ns)
            if self.drafter.pace.is_awake and not self._num_in_flight:
                num_drafts = self._draft(self.drafter, rows, budget)
        if num_drafts is not None:
            budget -= int(num_drafts.sum())
        may_admit = self.num_waiting > 0 and self.counts.num_preemptions == num_preemptions
        chunks = self._prefills.plan(budget, may_admit, now_ns)
        if not len(rows) and not chunks:
            return None
        return self._plan(rows, chunks, num_drafts)

    def _expire(self, now_ns: int) -> None:
        """Fail what has not started by its deadline."""
        now_s = now_ns / 1e9
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, stream_id = heappop(self._deadlines)
            sequence = self._sequences.get(stream_id)
            if sequence is not None and not sequence.first_scheduled_ns:
                self._fail(sequence, FailureCode.DEADLINE, "the request did not start before its deadline")

    def _draft(self, drafter: Drafter, rows: Rows, budget: int) -> Int32Array | None:
        """Drafts for these rows, of half the budget at most: prefills go on. They preempt nobody for their blocks."""
        state = self.state
        num_drafts = drafter.draft(rows, budget // 2)
        if not num_drafts.any():
            return None
        crossing = rows[state.num_tokens[rows] + num_drafts > state.num_blocks[rows] * self._block_size]
        if 0 < len(crossing) <= self.blocks.num_available:
            self._grow(crossing)
        room: Int32Array = state.num_blocks[rows] * self._block_size - state.num_tokens[rows]
        return np.minimum(num_drafts, room)

    def _grow_by_force(self, rows: Rows, growing: Rows) -> Rows:
        """What is left of the decoding rows when each has a block for its next token, by preempting some of them."""
        for row in sorted(growing.tolist(), key=lambda row: self._sequence_in(row).rank):
            if self._make_room_for(row):
                self._grow(np.array([row]))
        return rows[self.state.is_decoding[rows]]

    def _grow(self, rows: Rows) -> None:
        """One more block for each of these rows; there are enough."""
        state = self.state
        num_blocks = state.num_blocks[rows]
        lasts = state.block_table[rows, num_blocks - 1].tolist()
        state.block_table[rows, num_blocks] = self.blocks.allocate_behind(lasts)
        state.num_blocks[rows] = num_blocks + 1

    def _make_room_for(self, row: int) -> bool:
        """Preempt from the last rank up until a block is available. False when that hit the row itself."""
        while self.state.is_running[row]:
            if self.blocks.num_available:
                return True
            self._preempt(max(s for s in self.state.sequences if s is not None))
        return False

    def _preempt(self, sequence: Sequence) -> None:
        sequence.token_ids = self.state.token_ids[sequence.row, : self.state.num_tokens[sequence.row]].copy()
        sequence.num_preemptions += 1
        self.counts.num_preemptions += 1
        self._vacate(sequence)
        sequence.state = SequenceState.WAITING
        self._waiting.push(sequence)

    def _note_start(self, sequence: Sequence, num_cached: int, now_ns: int) -> None:
        sequence.first_scheduled_ns = now_ns
        sequence.num_cached_tokens = num_cached
        self._waiting.charge(sequence.fair_key, sequence.num_prompt_tokens - num_cached, 0)
        self._started.append(sequence.stream_id)
        if sequence.is_cacheable:
            self.counts.prefix_queries += sequence.num_prompt_tokens
            self.counts.prefix_hits += num_cached

    def _plan(self, decode_rows: Rows, chunks: list[tuple[int, int]], num_drafts: Int32Array | None) -> StepPlan:
        state = self.state
        num_decodes = len(decode_rows)
        num_new_tokens = np.ones(num_decodes + len(chunks), np.int32)
        rows = decode_rows
        if chunks:
            prefills = np.array(chunks, np.intp)
            rows = np.concatenate((decode_rows, prefills[:, 0]))
            num_new_tokens[num_decodes:] = prefills[:, 1]
        context_lens = state.num_computed[rows]
        samples = context_lens + num_new_tokens == state.num_tokens[rows]
        num_tokens = num_decodes + sum(chunk for _, chunk in chunks)
        if num_drafts is not None:
            num_drafts = np.concatenate((num_drafts, np.zeros(len(chunks), np.int32)))
            num_new_tokens = num_new_tokens + num_drafts
            num_tokens += int(num_drafts.sum())
        return StepPlan(
            rows=rows,
            num_new_tokens=num_new_tokens,
            context_lens=context_lens,
            samples=samples,
            num_decodes=num_decodes,
            num_tokens=num_tokens,
            freed_rows=state.take_freed_rows(),
            changed_rows=state.take_changed_rows(),
            tenancy=state.tenancy[rows],
            num_drafts=num_drafts,
        )

    def advance(self, plan: StepPlan) -> None:
        """The plan was launched: count what it computes and draws, before anyone knows the tokens."""
        state, rows = self.state, plan.sampled_rows
        self._num_in_flight += 1
        state.num_computed[plan.rows] = plan.context_lens + plan.num_new_tokens
        if plan.num_drafts is not None:
            state.num_computed[plan.rows] -= plan.num_drafts
        state.num_tokens[rows] += 1
        state.num_in_flight[rows] += 1
        for row in rows[plan.num_decodes :].tolist():  # these have their prompt computed
            state.is_decoding[row] = True
            self._prefills.under_way.remove(self._sequence_in(row))

    # ── after the forward pass ───────────────────────────────────────────────────────────────────────────────────

    def commit(self, plan: StepPlan, result: StepResult, now_ns: int | None = None) -> SampledTokens:
        """Store the sampled tokens, publish blocks that became full, end what has ended; returns what streams get."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        state = self.state
        self._num_in_flight -= 1
        for row, failure in result.failures.items():  # before anything of theirs is published
            if self._has_stayed(plan, row):
                code = FailureCode.GRAMMAR if failure.is_clients else FailureCode.INTERNAL
                self._fail(self._sequence_in(row), code, failure.message)
        computed = plan.context_lens + plan.num_new_tokens
        has_stayed = state.tenancy[plan.rows] == plan.tenancy
        sampled = has_stayed & plan.samples
        drafted = NO_TOKENS
        if plan.num_drafts is not None:
            computed, drafted = self._accept(plan, result, computed, has_stayed)
        rows, token_ids, places = plan.rows[sampled], result.token_ids[has_stayed[plan.samples]], computed[sampled]
        state.token_ids[rows, places] = token_ids
        state.num_in_flight[rows] -= 1
        for row, embedding in result.embeddings.items():
            if self._has_stayed(plan, row):
                self._sequence_in(row).embedding = embedding
        self._prefixes.publish(plan.rows[has_stayed], computed[has_stayed])
        for row in rows[np.count_nonzero(sampled[: plan.num_decodes]) :].tolist():
            sequence = self._sequence_in(row)
            sequence.first_token_ns = sequence.first_token_ns or now_ns
        of_prompts = self._scored_prompts(plan, result) if result.prompt_scores else ()
        tokens = self._check_stops(rows, token_ids, places + 1, now_ns, result.scores)
        if len(drafted.token_ids):
            tokens = drafted.followed_by(tokens)
        return replace(tokens, scored=of_prompts + tokens.scored) if of_prompts else tokens

    def _accept(
        self, plan: StepPlan, result: StepResult, computed: Int32Array, has_stayed: NDArray[np.bool_]
    ) -> tuple[Int32Array, SampledTokens]:
        """Count the drafts that were drawn as known and computed; what is computed of each entry, and the tokens for the
        streams."""
        assert plan.num_drafts is not None and result.num_accepted is not None
        state, accepted = self.state, np.zeros(len(plan.rows), np.int32)
        accepted[plan.samples] = result.num_accepted
        self.counts.drafts.note(plan.num_drafts, accepted)
        if self.drafter is not None:
            self.drafter.pace.note(int(accepted.sum()))
        rows, counts = plan.rows[has_stayed], accepted[has_stayed]
        places = np.repeat(state.num_computed[rows], counts) + counting_up(counts)
        state.num_computed[rows] += counts
        state.num_tokens[rows] += counts
        many = np.repeat(rows, counts)
        is_sent = state.is_streaming[many]
        sent = many[is_sent]
        tokens = SampledTokens(state.slot[sent], state.number[sent], state.token_ids[sent, places[is_sent]])
        return computed - plan.num_drafts + accepted, tokens

    def _has_stayed(self, plan: StepPlan, row: int) -> bool:
        """Whether the row has the occupant it had in this plan."""
        [entry] = np.flatnonzero(plan.rows == row)
        return bool(self.state.tenancy[row] == plan.tenancy[entry])

    def _check_stops(
        self,
        rows: Rows,
        token_ids: Int32Array,
        num_tokens: Int32Array,
        now_ns: int,
        scores: dict[int, TokenScores],
    ) -> SampledTokens:
        """End what drew a stop id or is as long as it may be; the rest of the tokens go to their streams."""
        state = self.state
        has_stopped = (state.stop_ids[rows] == token_ids[:, None]).any(axis=1)
        is_full = num_tokens >= state.max_total_len[rows]
        if has_stopped.any():
            is_long = num_tokens - state.num_prompt[rows] >= state.min_tokens[rows]
            has_stopped &= is_long | state.has_grammar[rows]  # a grammar ends where nothing else may follow
        is_sent = state.is_streaming[rows] & ~has_stopped
        of_drawn: tuple[tuple[int, Scored], ...] = ()
        if scores:
            is_scored = np.isin(rows, list(scores))
            of_drawn = self._scored(rows[is_scored], token_ids[is_scored], has_stopped[is_scored], scores)
            is_sent &= ~is_scored
        sent = rows[is_sent]
        tokens = SampledTokens(state.slot[sent], state.number[sent], token_ids[is_sent], of_drawn)
        for position in np.flatnonzero(has_stopped | is_full).tolist():
            stop_token_id = int(token_ids[position]) if has_stopped[position] else NO_STOP_TOKEN
            self._finish(self._sequence_in(int(rows[position])), stop_token_id, now_ns)
        return tokens

    def _scored(
        self, rows: Rows, token_ids: Int32Array, has_stopped: NDArray[np.bool_], scores: dict[int, TokenScores]
    ) -> tuple[tuple[int, Scored], ...]:
        drawn = zip(rows.tolist(), token_ids.tolist(), has_stopped.tolist(), strict=True)
        return tuple(
            scored(self._sequence_in(row), token, scores[row], is_stop=is_stop) for row, token, is_stop in drawn
        )

    def _scored_prompts(self, plan: StepPlan, result: StepResult) -> tuple[tuple[int, Scored], ...]:
        entries: list[tuple[int, Scored]] = []
        for row, prompt in result.prompt_scores.items():
            if self._has_stayed(plan, row):
                sequence, tokens = self._sequence_in(row), self.state.token_ids[row]
                places = enumerate(prompt.scores, prompt.first_place)
                entries += (scored(sequence, int(tokens[place]), own, prompt_place=place) for place, own in places)
        return tuple(entries)

    # ── the end of a sequence ────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, sequence: Sequence, stop_token_id: int, now_ns: int) -> None:
        has_stopped = stop_token_id != NO_STOP_TOKEN
        output_ids = self.state.output_ids(sequence.row)
        code = FinishCode.STOP if has_stopped else FinishCode.LENGTH
        finish = finish_record(sequence, code, len(output_ids), stop_token_id, now_ns)
        bulk = None
        if not sequence.is_streaming and not sequence.pooling:
            bulk = output_ids[sequence.num_delivered : -1 if has_stopped else None]
        self._endings.append(Ending(sequence.slot, finish, bulk, sequence.embedding))
        self._end(sequence)

    def _fail(self, sequence: Sequence, code: FailureCode, message: str) -> None:
        self._endings.append(Ending(sequence.slot, Failure(sequence.number, code, message)))
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """However it ended: give its row and blocks back and forget it."""
        if sequence.fair_key:
            self._waiting.charge(sequence.fair_key, 0, self._num_output_tokens(sequence) - sequence.num_delivered)
        if sequence.state is SequenceState.RUNNING:
            self._vacate(sequence)
        sequence.state = SequenceState.ENDED
        del self._sequences[sequence.stream_id]
        self._ended.append(sequence.stream_id)
        if len(self._waiting) > 2 * self.num_waiting + 64:
            self._waiting.compact()

    def _vacate(self, sequence: Sequence) -> None:
        """Leave the row; the blocks stay cached as far as they were published."""
        row = sequence.row
        if not self.state.is_decoding[row]:
            self._prefills.under_way.remove(sequence)
        self.blocks.release(self.state.block_table[row, : self.state.num_blocks[row]].tolist())
        self.state.remove(row)

    def _num_output_tokens(self, sequence: Sequence) -> int:
        num_tokens = len(sequence.token_ids) if sequence.row == NO_ROW else self.state.num_known(sequence.row)
        return num_tokens - sequence.num_prompt_tokens

    def _sequence_in(self, row: int) -> Sequence:
        sequence = self.state.sequences[row]
        assert sequence is not None, f"{row=} has no sequence"
        return sequence

    # ── for tests and debugging ──────────────────────────────────────────────────────────────────────────────────

    def check_integrity(self) -> None:
        """Rows, blocks and queues agree with each other. O(everything); between two rounds only."""
        state, num_users = self.state, dict[int, int]()
        for row, sequence in enumerate(state.sequences):
            assert (sequence is not None) == bool(state.is_running[row])
            if sequence is None:
                assert not state.is_decoding[row]
                continue
            assert sequence.row == row and sequence.state is SequenceState.RUNNING
            assert self._sequences[sequence.stream_id] is sequence
            assert (sequence in self._prefills.under_way) != bool(state.is_decoding[row])
            assert state.num_computed[row] <= state.num_blocks[row] * self._block_size
            assert state.num_computed[row] < state.num_tokens[row] <= state.max_total_len[row]
            assert 0 <= state.num_in_flight[row] <= self._num_in_flight
            for block in state.block_table[row, : state.num_blocks[row]].tolist():
                num_users[block] = num_users.get(block, 0) + 1
        self.blocks.check_integrity(num_users)
        assert len(set(map(id, self._prefills.under_way))) == len(self._prefills.under_way)
        waiting = self._waiting.waiting
        assert len(waiting) == self.num_waiting
        assert {s.stream_id for s in waiting} <= self._sequences.keys()
