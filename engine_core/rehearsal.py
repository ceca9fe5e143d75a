"""A request that asks for every rule there is, computed at the start and given to nobody: what its passes compile, no
client waits for. No torch."""

import numpy as np

from engine_core.batch_state import BatchState
from engine_core.plan import Runner, StepPlan
from engine_core.sequence import Sequence
from ipc.messages import SamplingParams

PROMPT = (0, 1)
EVERY_RULE = SamplingParams(
    temperature=1.0, seed=0, max_tokens=2, min_tokens=2, top_k=2, top_p=0.9, min_p=0.01, presence_penalty=0.1,
    frequency_penalty=0.1, repetition_penalty=1.1, logit_bias=((0, 1.0),), allowed_token_ids=(0, 1, 2, 3),
    bad_words=((2,), (1, 1)), num_logprobs=2, logprob_token_ids=(0,),
)  # fmt: skip


def rehearse(runner: Runner, state: BatchState) -> None:
    """Two passes, with prefill and without, in a row that is free again afterwards; their K/V goes to block 0, which nobody
    owns yet. Whatever they draw."""
    sequence = Sequence(
        stream_id=0, request_id="", sampling=EVERY_RULE, token_ids=np.array(PROMPT, np.int32),
        num_prompt_tokens=len(PROMPT), max_total_len=len(PROMPT) + 2, arrival=0, arrival_ns=0,
    )  # fmt: skip
    row = state.add(sequence)
    state.block_table[row, 0] = 0
    for num_computed, num_new in ((0, len(PROMPT)), (len(PROMPT), 1)):
        rows = np.array([row], np.intp)
        plan = StepPlan(
            rows=rows,
            num_new_tokens=np.array([num_new], np.int32),
            context_lens=np.array([num_computed], np.int32),
            samples=np.ones(1, np.bool_),
            num_decodes=int(num_computed > 0),
            num_tokens=num_new,
            freed_rows=state.take_freed_rows(),
            changed_rows=state.take_changed_rows(),
            tenancy=state.tenancy[rows],
        )
        drawn = runner.launch(plan).result().token_ids
        state.token_ids[row, state.num_tokens[row]] = drawn[0]
        state.num_tokens[row] += 1
    state.remove(row)
