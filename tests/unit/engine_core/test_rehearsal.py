"""The request of the start leaves nothing behind, and asks for everything that a device draws by."""

from engine_core.plan import Launched, StepPlan
from engine_core.rehearsal import rehearse
from engine_core.rule_records import has_rules, record_of_or_none
from ipc.messages import NO_LOGPROBS
from tests.unit.engine_core.test_model_runner import build, occupy, plan_of


def test_a_rehearsal_leaves_no_row_taken_and_changes_no_later_result() -> None:
    results = []
    for is_rehearsed in (False, True):
        runner, state = build()
        if is_rehearsed:
            rehearse(runner, state)
            assert state.num_free_rows == state.max_num_seqs
            assert state.take_freed_rows().tolist() == [0] and not len(state.take_changed_rows())
        occupy(state, 1, 5)
        state.block_table[1, 0] = 0  # whose K/V the rehearsal wrote
        results.append(runner.launch(plan_of(state, 1, 0, 5)).result().token_ids.tolist())

    assert results[0] == results[1]


def test_both_kinds_of_pass_have_a_row_with_every_rule_that_fits_the_device() -> None:
    runner, state = build()
    seen = []

    class Watching:
        num_blocks, runs_ahead = runner.num_blocks, runner.runs_ahead

        def warm_up(self) -> None: ...

        def launch(self, plan: StepPlan) -> Launched:
            [row] = plan.rows.tolist()
            assert record_of_or_none(state, row) is not None and has_rules(state, plan.rows).all()
            assert state.has_bad_words[row] and state.is_restricted[row] and state.logit_bias[row]
            assert state.num_logprobs[row] != NO_LOGPROBS and state.logprob_token_ids[row]
            seen.append((plan.num_decodes, plan.num_tokens, bool(plan.samples.all())))
            return runner.launch(plan)

    rehearse(Watching(), state)

    assert seen == [(0, 2, True), (1, 1, True)]
