"""StepPlan: which rows get a token."""

import numpy as np

from engine_core.plan import StepPlan


def test_sampled_rows_are_those_whose_chunk_ends_with_the_last_token() -> None:
    nothing = np.zeros(0, np.intp)
    plan = StepPlan(
        rows=np.array([4, 2, 7]),
        num_new_tokens=np.array([1, 8, 3], np.int32),
        context_lens=np.array([5, 0, 0], np.int32),
        samples=np.array([True, False, True]),
        num_decodes=1,
        num_tokens=12,
        freed_rows=nothing,
        changed_rows=nothing,
        tenancy=np.zeros(3, np.int64),
    )

    assert plan.sampled_rows.tolist() == [4, 7]
