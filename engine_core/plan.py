"""The whole contract between the scheduler and whatever computes: plans go in, sampled token ids come out. No torch.

Everything that outlives a step stands in `BatchState`, which the scheduler writes and the runner reads; a plan only
says which of its rows move and by how much.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Rows = NDArray[np.intp]  # indices of BatchState rows: numpy gathers with its own index type three times faster


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One forward pass, as a struct of arrays: decodes first, then prefill chunks. n = len(rows) >= 1.

    Entry i computes tokens `context_lens[i] : context_lens[i] + num_new_tokens[i]` of `BatchState.token_ids[rows[i]]`;
    blocks for them are in the row's block table. Where `samples[i]`, the chunk ends with the last known token and the
    runner draws the next one. A row appears at most once. The arrays belong to the plan and stay as they are.
    """

    rows: Rows  # (n,) rows of BatchState
    num_new_tokens: Int32Array  # (n,) at least 1; for decodes 1 and their drafts
    context_lens: Int32Array  # (n,) tokens whose K/V is there before this step
    samples: NDArray[np.bool_]  # (n,) True for every decode and for the last chunk of a prefill
    num_decodes: int
    num_tokens: int  # sum of num_new_tokens
    freed_rows: Rows  # rows given up since the previous plan: forget what is cached for them, before changed_rows
    changed_rows: Rows  # rows with a new occupant since the previous plan: read all of the row's columns again
    tenancy: NDArray[np.int64]  # (n,) of the rows: one that has another by now was given up after this plan
    num_drafts: Int32Array | None = None  # (n,) guessed tokens at the end of each entry; None: nobody has one

    @property
    def sampled_rows(self) -> Rows:
        """(m,) the rows that get a token, in the order of `StepResult.token_ids`."""
        return self.rows[self.samples]


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Log-probabilities where one token was drawn: the model's own, before any sampling parameter."""

    logprob: float
    rank: int  # 1: the likeliest
    ids: list[int]  # the likeliest tokens, descending; as many as the row asked for
    logprobs: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class PromptScores:
    """Of consecutive prompt tokens of one row, each where it follows those before it."""

    first_place: int  # in the prompt; at least 1
    scores: list[TokenScores]


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why one row of a pass got no token."""

    message: str  # one line for the client
    is_clients: bool = False  # it asked for what cannot be


NO_FINITE_LOGITS = RowFailure("the model gave no finite logits")
DEAD_END = RowFailure("no token is allowed by all of the request's parameters together", is_clients=True)


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What one forward pass gave. A row in `failures` ends with it; its entry in `token_ids` is ignored."""

    token_ids: Int32Array  # (m,) one id per row with `samples`, in the plan's order; behind its accepted drafts
    failures: dict[int, RowFailure] = field(default_factory=dict)  # by row
    scores: dict[int, TokenScores] = field(default_factory=dict)  # by row, of those that ask for logprobs
    embeddings: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # by row, of those that pool, once whole
    prompt_scores: dict[int, PromptScores] = field(default_factory=dict)  # by row, of those whose prompt is scored
    num_accepted: Int32Array | None = None  # (m,) drafts that were drawn; of a plan with drafts


class Launched(Protocol):
    """A forward pass under way."""

    def result(self) -> StepResult:
        """Block until the pass is done. Called exactly once, in the order of launches."""


class Runner(Protocol):
    """Computes plans. Built with the BatchState it reads; owns the K/V memory."""

    @property
    def num_blocks(self) -> int:
        """KV blocks in the pool; ids are 0 to num_blocks - 1. Fixed for life."""

    @property
    def runs_ahead(self) -> bool:
        """Whether `launch` returns before the pass is done, and takes the next plan before its tokens are known. May change
        with every launch."""

    def warm_up(self) -> None:
        """Whatever makes the first step as fast as the rest. Blocks; called once, before any launch."""

    def launch(self, plan: StepPlan) -> Launched:
        """Start one pass. A runner that runs ahead gets at most one more before the result of this one is asked for; the
        last token of a decode may then be known to nobody but itself. Raising fails all of the plan."""
