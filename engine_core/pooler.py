"""The one vector of a sequence that pools, out of the hidden states of its chunks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_core.batch_state import BatchState
from engine_core.plan import StepPlan
from ipc.messages import Pooling


class Pooler:
    """Keeps the sums of means under way, by row. A row's first chunk begins at its first token: it starts a new one."""

    def __init__(self, state: BatchState) -> None:
        self._state = state
        self._sums: dict[int, Tensor] = {}  # (hidden_size,) float32 each

    def pool(self, plan: StepPlan, hidden: Tensor) -> dict[int, NDArray[np.float32]]:
        """`hidden` is (num_tokens, hidden_size), the plan's tokens end to end → by row, what is whole. Waits for the device."""
        ends = np.cumsum(plan.num_new_tokens)
        embeddings: dict[int, NDArray[np.float32]] = {}
        for entry in np.flatnonzero(self._state.pooling[plan.rows]).tolist():
            row, end = int(plan.rows[entry]), int(ends[entry])
            chunk = hidden[end - int(plan.num_new_tokens[entry]) : end]
            if self._state.pooling[row] == Pooling.MEAN:
                self._add(row, chunk, is_first=plan.context_lens[entry] == 0)
            if plan.samples[entry]:
                embeddings[row] = self._whole(row, chunk).cpu().numpy()
        return embeddings

    def _add(self, row: int, chunk: Tensor, *, is_first: bool) -> None:
        total = chunk.sum(0, dtype=torch.float32)
        self._sums[row] = total if is_first else self._sums[row] + total

    def _whole(self, row: int, last_chunk: Tensor) -> Tensor:
        if self._state.pooling[row] == Pooling.MEAN:
            return self._sums.pop(row) / int(self._state.num_prompt[row])
        return last_chunk[-1].float()
