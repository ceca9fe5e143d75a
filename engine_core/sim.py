"""The engine kind without weights: answers every request with scripted words, at a set pace. No torch.

What a request gets depends on its prompt, its seed and the position alone, so that a client can check every token. The
words come from the model's own vocabulary and decode to plain text one by one. Steps end on an absolute schedule: a
step that starts late does not delay the ones behind it.
"""

import re
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from config.model_folder import ModelFolder
from config.settings import EngineSettings
from engine_core.batch_state import BatchState
from engine_core.errors import CannotBoot
from engine_core.held_output import allowed_next
from engine_core.plan import DEAD_END, Int32Array, PromptScores, RowFailure, Rows, StepPlan, StepResult, TokenScores
from engine_core.row_guard import each_row
from ipc.messages import NO_LOGPROBS, Pooling

_SPACED_WORD = re.compile("[Ġ▁][a-z]{2,12}")  # a word with its space, in byte-level and in SentencePiece spelling
_WORD = re.compile("[A-Za-z]{1,12}")
_STRIDE = 7919  # prime: neighbouring positions get unlike words
_DEFAULT_TOKENS_PER_SEQUENCE = 2048  # of KV, when nothing says otherwise


class SimRunner:
    """Draws script[(base + position * stride) % n], where the base comes from prompt and seed."""

    runs_ahead = False

    def __init__(
        self,
        state: BatchState,
        *,
        script: Int32Array,
        num_blocks: int,
        step_ms: float,
        prefill_us_per_token: float,
        hidden_size: int = 64,
    ) -> None:
        self.num_blocks = num_blocks
        self._state = state
        self._script = script
        self._hidden_size = hidden_size
        self._bases = np.zeros(state.max_num_seqs, np.int64)
        self._step_s = step_ms / 1e3
        self._prefill_s_per_token = prefill_us_per_token / 1e6
        self._due_s = 0.0  # when the last step was over, or is

    def warm_up(self) -> None:
        """Nothing is cold here."""

    def launch(self, plan: StepPlan) -> "SimLaunched":
        state = self._state
        for row in plan.changed_rows.tolist():
            self._bases[row] = self._base(row)
        rows = plan.sampled_rows
        positions = (state.num_tokens[rows] - state.num_prompt[rows]).astype(np.int64)
        token_ids = self._script[(self._bases[rows] + positions * _STRIDE) % len(self._script)]
        failures = self._hold_to_grammars(rows, token_ids) if state.has_grammar[rows].any() else {}
        embeddings = self._embeddings(rows) if state.num_pooled else {}
        prompt_scores = self._prompt_scores(plan) if state.num_scored_prompts else {}
        result = StepResult(token_ids, failures, embeddings=embeddings, prompt_scores=prompt_scores)
        return SimLaunched(result, self._end_of_step_s(plan.num_tokens - plan.num_decodes))

    def _embeddings(self, rows: Rows) -> dict[int, NDArray[np.float32]]:
        """Noise that depends on the prompt alone."""
        pooled = rows[self._state.pooling[rows] != Pooling.NONE].tolist()
        return {
            row: np.random.default_rng(self._bases[row]).standard_normal(self._hidden_size, np.float32)
            for row in pooled
        }

    def _prompt_scores(self, plan: StepPlan) -> dict[int, PromptScores]:
        """Of a script that expects whatever it is given: each token is certain, and nothing stands beside it."""
        state, scored = self._state, dict[int, PromptScores]()
        for row, context_len, num_new in zip(plan.rows, plan.context_lens, plan.num_new_tokens, strict=True):
            end = min(int(context_len + num_new), int(state.num_prompt[row]) - 1)
            if state.num_prompt_logprobs[row] != NO_LOGPROBS and context_len < end:
                certain = [TokenScores(0.0, 1, [], []) for _ in range(context_len, end)]
                scored[int(row)] = PromptScores(int(context_len) + 1, certain)
        return scored

    def _hold_to_grammars(self, rows: Rows, token_ids: Int32Array) -> dict[int, RowFailure]:
        """The end where it is allowed, else the scripted word, else the first token that fits; what nothing fits fails."""
        state, failures = self._state, dict[int, RowFailure]()

        def hold(index: int, row: int) -> None:
            known = state.token_ids[row, state.num_prompt[row] : state.num_tokens[row]]
            allowed = allowed_next(state.matcher_of(row), known, state.thinking[row])
            if allowed is None:
                return
            wanted = [*state.eos_token_ids, int(token_ids[index]), int(allowed.argmax())]
            fitting = next((token for token in wanted if allowed[token]), None)
            if fitting is None:
                failures[row] = DEAD_END
            else:
                token_ids[index] = fitting

        each_row(rows, np.flatnonzero(state.has_grammar[rows]), hold, failures)
        return failures

    def _base(self, row: int) -> int:
        sequence = self._state.sequences[row]
        assert sequence is not None
        seed = (sequence.sampling.seed or 0).to_bytes(16, "little", signed=True)
        return crc32(self._state.token_ids[row, : sequence.num_prompt_tokens].tobytes(), crc32(seed))

    def _end_of_step_s(self, num_prefill_tokens: int) -> float:
        """The last end plus one step; from now instead when the engine was idle or cannot keep the pace."""
        duration_s = self._step_s + num_prefill_tokens * self._prefill_s_per_token
        now_s = time.monotonic()
        start_s = self._due_s if now_s - self._due_s < duration_s else now_s
        self._due_s = start_s + duration_s
        return self._due_s


class SimLaunched:
    """A pass that is over at a certain time."""

    def __init__(self, result: StepResult, due_s: float) -> None:
        self._result = result
        self._due_s = due_s

    def result(self) -> StepResult:
        wait_s = self._due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        return self._result


def build_sim_runner(settings: EngineSettings, model: ModelFolder, state: BatchState) -> SimRunner:
    """The runner of `--engine sim`. Raises CannotBoot."""
    default_tokens = (
        settings.max_num_seqs * min(model.max_model_len, _DEFAULT_TOKENS_PER_SEQUENCE) + model.max_model_len
    )
    return SimRunner(
        state,
        script=read_script(model),
        num_blocks=settings.num_gpu_blocks_override or -(-default_tokens // settings.block_size),
        step_ms=settings.sim_step_ms,
        prefill_us_per_token=settings.sim_prefill_us_per_token,
        hidden_size=int(model.hf_config.get("hidden_size", 64)),
    )


class _Vocabulary(Struct):
    vocab: dict[str, int] | list[Any] = {}  # Any: a Unigram model lists [token, score] in the order of ids


class _AddedToken(Struct):
    id: int


class _TokenizerFile(Struct):
    """The part of tokenizer.json that is read here."""

    model: _Vocabulary
    added_tokens: list[_AddedToken] = []


def read_script(model: ModelFolder) -> Int32Array:
    """Ids of ordinary lower-case words of the vocabulary, ascending. Raises CannotBoot when it has none."""
    content = _read_tokenizer(model.tokenizer_path)
    vocab = content.model.vocab
    id_of = vocab if isinstance(vocab, dict) else {entry[0]: index for index, entry in enumerate(vocab)}
    excluded = {token.id for token in content.added_tokens} | set(model.eos_token_ids)
    for word in (_SPACED_WORD, _WORD):
        ids = [i for token, i in id_of.items() if i not in excluded and i < model.vocab_size and word.fullmatch(token)]
        if ids:
            return np.array(sorted(ids), np.int32)
    raise CannotBoot(f"{model.tokenizer_path} has no plain word that --engine sim could answer with")


def _read_tokenizer(path: Path) -> _TokenizerFile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_TokenizerFile)
    except OSError as error:
        raise CannotBoot(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise CannotBoot(f"{path} is not a tokenizer in the fast format: {error}") from None
