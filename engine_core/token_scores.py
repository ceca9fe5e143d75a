"""The scores of tokens out of their rows of log-probabilities."""

from torch import Tensor

from engine_core.plan import TokenScores


def scores_of(logprobs: Tensor, chosen: Tensor, counts: list[int]) -> list[TokenScores]:
    """(m, vocab_size) log-probabilities, the (m,) int64 tokens that stand there and how many of the likeliest are asked for
    beside each. Waits for the device."""
    own = logprobs.gather(1, chosen.unsqueeze(1))
    ranks = (logprobs > own).sum(-1).add_(1).tolist()
    values, ids = (part.tolist() for part in logprobs.topk(max(1, *counts), dim=-1))
    return [
        TokenScores(logprob, ranks[entry], ids[entry][:count], values[entry][:count])
        for entry, (count, [logprob]) in enumerate(zip(counts, own.tolist(), strict=True))
    ]


def with_alternatives(own: TokenScores, logprobs: Tensor, ids: list[int]) -> TokenScores:
    """Beside the token these, out of its (vocab_size,) row."""
    return TokenScores(own.logprob, own.rank, ids, logprobs[ids].tolist())
