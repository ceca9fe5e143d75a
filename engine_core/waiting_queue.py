"""Who runs next: by priority, which waiting improves; among equals by the key that was served least; then by arrival.

Fairness is a virtual token counter per key (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): a key
pays for what its requests compute, an output token costing twice a prompt token, and the key that has paid least is
next. One that comes back after a pause starts at the least of those that wait, so idling earns no credit. Requests
without keys share one and stand in plain order of priority and arrival.

A request moves up one priority for every `ageing_s` that it waits, as far as the best that waits with it, so none waits
forever. Costs one comparison per key and priority that waits, as a rule one.
"""

from heapq import heapify, heappop, heappush

from engine_core.sequence import Sequence, SequenceState

OUTPUT_TOKEN_COST = 2  # prompt tokens
MAX_KEYS = 4096  # remembered while none of their requests wait


class WaitingQueue:
    """Ended sequences may stay in it: they are dropped when they surface, or by `compact`."""

    def __init__(self, ageing_s: float) -> None:
        """`ageing_s` 0: priorities are strict."""
        self._ageing_ns = int(ageing_s * 1e9)
        self._lines: dict[tuple[int, int], list[tuple[int, Sequence]]] = {}  # (key, priority) -> heap by arrival
        self._paid: dict[int, int] = {}  # virtual token counter of each key
        self._head_line: tuple[int, int] | None = None

    def __len__(self) -> int:
        """With those that have ended."""
        return sum(map(len, self._lines.values()))

    @property
    def waiting(self) -> list[Sequence]:
        return [s for line in self._lines.values() for _, s in line if s.state is SequenceState.WAITING]

    def push(self, sequence: Sequence) -> None:
        key, line = sequence.fair_key, (sequence.fair_key, sequence.priority)
        if key and not any(waiting_key == key for waiting_key, _ in self._lines):
            self._paid[key] = max(self._paid.get(key, 0), self._least_paid())
        heappush(self._lines.setdefault(line, []), (sequence.arrival, sequence))

    def head_or_none(self, now_ns: int) -> Sequence | None:
        """The next one. Stays until `pop`, which must come before another `push`."""
        heads = self._heads()
        if len(heads) == 1:
            [(self._head_line, head)] = heads.items()
            return head
        if not heads:
            return None
        best = min(priority for _, priority in heads)

        def rank(line: tuple[int, int]) -> tuple[int, int, int]:
            key, priority = line
            waited_ns = now_ns - heads[line].arrival_ns
            steps = waited_ns // self._ageing_ns if self._ageing_ns else 0
            return max(best, priority - steps), self._paid.get(key, 0), heads[line].arrival

        self._head_line = min(heads, key=rank)
        return heads[self._head_line]

    def pop(self) -> None:
        """Take the head away."""
        assert self._head_line is not None
        self._pop(self._head_line)

    def charge(self, key: int, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """What one request of this key has cost."""
        if not key:
            return
        if key not in self._paid and len(self._paid) >= MAX_KEYS:
            waiting = {waiting_key for waiting_key, _ in self._lines}
            self._paid = {known: paid for known, paid in self._paid.items() if known in waiting}
        self._paid[key] = self._paid.get(key, 0) + num_prompt_tokens + OUTPUT_TOKEN_COST * num_output_tokens

    def compact(self) -> None:
        """Forget what has ended."""
        for line, entries in list(self._lines.items()):
            entries[:] = [entry for entry in entries if entry[1].state is SequenceState.WAITING]
            heapify(entries)
            if not entries:
                del self._lines[line]

    def _heads(self) -> dict[tuple[int, int], Sequence]:
        """The first of every line that waits."""
        heads = {}
        for line in list(self._lines):
            while (entries := self._lines.get(line)) and entries[0][1].state is not SequenceState.WAITING:
                self._pop(line)
            if entries:
                heads[line] = entries[0][1]
        return heads

    def _pop(self, line: tuple[int, int]) -> None:
        entries = self._lines[line]
        heappop(entries)
        if not entries:
            del self._lines[line]

    def _least_paid(self) -> int:
        return min((self._paid.get(key, 0) for key, _ in self._lines), default=0)
