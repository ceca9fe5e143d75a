"""The device sampler cuts as the host sampler does and draws from what is left, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine_core.philox import uniforms
from engine_core.sampler import _invert, _kept

DTYPE = torch.bfloat16
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def fields_of(num_rows: int, device: torch.device, **columns: list[float]) -> dict[str, Tensor]:
    """As StepBuffers sends them: everything 32 bits wide, in int32 memory."""
    defaults: dict[str, list[float]] = {
        "temperatures": [1.0] * num_rows, "top_ks": [0] * num_rows, "top_ps": [1.0] * num_rows,
        "min_ps": [0.0] * num_rows, "seeds_low": [*range(num_rows)], "seeds_high": [0] * num_rows,
        "draws": [0] * num_rows, "sampled_rows": [*range(num_rows)],
    }  # fmt: skip
    fields = {}
    for name, values in (defaults | columns).items():
        is_float = name in ("temperatures", "top_ps", "min_ps")
        column = np.array(values, np.float32 if is_float else np.int32).view(np.int32)
        fields[name] = torch.from_numpy(column).to(device)
    return fields


def draw(logits: Tensor, **columns: list[float]) -> list[int]:
    from engine_core.device_sampler import sample, scratch_for

    m, device = len(logits), logits.device
    last_tokens, drawn = (torch.full((m + 1,), -7, dtype=torch.int32, device=device) for _ in range(2))
    sample(
        logits, fields_of(m, device, **columns), last_tokens, drawn, scratch_for(m, logits.shape[1], device)
    )  # fmt: skip
    ids: list[int] = drawn[:m].tolist()
    if min(ids) >= 0 and "sampled_rows" not in columns:
        assert last_tokens[:m].tolist() == ids
    return ids


def random_logits(num_rows: int, vocab_size: int, device: torch.device, dtype: torch.dtype = DTYPE) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return (torch.randn((num_rows, vocab_size), generator=generator) * 3).to(dtype).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [50, 4096, 9001])
def test_greedy_takes_the_first_of_the_largest(device: torch.device, vocab_size: int, dtype: torch.dtype) -> None:
    logits = random_logits(4, vocab_size, device, dtype)

    ids = draw(logits, temperatures=[0.0] * 4)

    assert ids == logits.float().cpu().argmax(-1).tolist()


def test_the_last_token_goes_to_the_row_of_the_sequence(device: torch.device) -> None:
    from engine_core.device_sampler import sample, scratch_for

    logits = random_logits(2, 50, device)
    last_tokens, drawn = torch.full((6,), -7, dtype=torch.int32, device=device), torch.zeros(2, dtype=torch.int32)

    sample(
        logits, fields_of(2, device, sampled_rows=[4, 1]), last_tokens, drawn.to(device), scratch_for(2, 50, device)
    )  # fmt: skip

    assert [last_tokens[i].item() == -7 for i in range(6)] == [True, False, True, True, False, True]


def test_a_row_that_is_not_finite_gets_no_id_and_the_others_do(device: torch.device) -> None:
    logits = random_logits(3, 5000, device)
    logits[1, 4500] = float("nan")

    ids = draw(logits)

    assert ids[1] == -1 and min(ids[0], ids[2]) >= 0


def test_a_draw_depends_on_seed_and_position_alone(device: torch.device) -> None:
    logits = random_logits(1, 5000, device).expand(6, -1).contiguous()

    ids = draw(logits, seeds_low=[5, 6, 5, 5, 9, 5], draws=[1, 1, 1, 2, 1, 1], temperatures=[2.0] * 6)
    alone = draw(logits[:1], seeds_low=[5], draws=[1], temperatures=[2.0])

    assert ids[0] == ids[2] == ids[5] == alone[0]
    assert len({ids[0], ids[1], ids[3], ids[4]}) > 1


def test_draws_follow_the_distribution(device: torch.device) -> None:
    num_draws, temperature = (20_000, 1.5) if device.type == "cuda" else (300, 1.5)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5], dtype=DTYPE, device=device).expand(num_draws, -1).contiguous()

    counts = np.bincount(draw(logits, draws=[*range(num_draws)], temperatures=[temperature] * num_draws), minlength=5)

    expected = torch.softmax(logits[0].float().cpu() / temperature, -1).numpy() * num_draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 23.5, counts  # 4 degrees of freedom: one in ten thousand


def test_a_draw_is_that_of_the_host_sampler(device: torch.device) -> None:
    num_rows, vocab_size, temperature = (1000, 20_000, 0.9) if device.type == "cuda" else (20, 9000, 0.9)
    logits = random_logits(num_rows, vocab_size, device)
    seeds = np.arange(num_rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = seeds.view(np.int32).reshape(-1, 2)

    ids = draw(
        logits, seeds_low=words[:, 0].tolist(), seeds_high=words[:, 1].tolist(), draws=[11] * num_rows,
        temperatures=[temperature] * num_rows,
    )  # fmt: skip

    draws = torch.from_numpy(uniforms(seeds, np.full(num_rows, 11, np.uint64)))
    expected = _invert(torch.softmax(logits.float().cpu() / temperature, -1), draws).tolist()
    same = sum(mine == theirs for mine, theirs in zip(ids, expected, strict=True))
    assert same >= 0.99 * num_rows  # float32 sums may cross a border


@pytest.mark.parametrize(
    "top_k, top_p, min_p",
    [(1, 1.0, 0), (7, 1.0, 0), (0, 0.6, 0), (40, 0.8, 0), (0, 1.0, 0.2), (9, 0.9, 0.1)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_the_cuts_leave_is_drawn_and_all_of_it(
    device: torch.device, top_k: int, top_p: float, min_p: float, dtype: torch.dtype
) -> None:
    vocab_size, num_draws = 300, 4000 if device.type == "cuda" else 200
    row = random_logits(1, vocab_size, device, dtype)
    temperature = 1.3
    scaled = row.float().cpu() / temperature
    if min_p:
        scaled = scaled.masked_fill(scaled < scaled.max() + np.log(min_p), -torch.inf)
    limits = torch.tensor([[top_k or vocab_size]])
    kept, ids, _ = _kept(scaled, limits, torch.tensor([[top_p]], dtype=torch.float32), vocab_size)
    allowed = set(ids[kept > 0].tolist())
    least = min(row[0, token].item() for token in allowed)
    allowed_with_ties = {token for token in range(vocab_size) if row[0, token].item() >= least}

    drawn = draw(
        row.expand(num_draws, -1).contiguous(), draws=[*range(num_draws)], temperatures=[temperature] * num_draws,
        top_ks=[top_k] * num_draws, top_ps=[top_p] * num_draws, min_ps=[min_p] * num_draws,
    )  # fmt: skip

    assert set(drawn) <= allowed_with_ties
    likely = {int(token) for token in ids[kept > 0.02]}
    assert likely <= set(drawn) or device.type == "cpu"
