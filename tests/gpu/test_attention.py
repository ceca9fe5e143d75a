"""Every backend attends as a float32 reference does, over pages in any order, with NaN in every page nobody owns."""

import pytest
import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata
from tests.gpu.conftest import IS_INTERPRETED

DTYPE = torch.float16 if IS_INTERPRETED else torch.bfloat16  # the interpreter gets bf16 products wrong
HEADS = [(16, 8, 128), (32, 8, 128), (9, 3, 64), (4, 4, 64)]  # query heads, K/V heads, head_dim
NUM_PAGES = 24


class Batch:
    """Sequences of (context, new tokens) in a pool of pages, and what attention over them is."""

    def __init__(
        self, sequences: list[tuple[int, int]], heads: tuple[int, int, int], page: int, device: torch.device
    ) -> None:
        num_heads, num_kv_heads, head_dim = heads
        generator = torch.Generator().manual_seed(len(sequences))
        num_pages = max(NUM_PAGES, sum(-(-(c + n) // page) for c, n in sequences) + 3)
        planes = torch.full((2, num_pages * page, num_kv_heads, head_dim), float("nan"), dtype=DTYPE)
        order = torch.randperm(num_pages, generator=generator).tolist()
        width = max(-(-(context + new) // page) for context, new in sequences) + 1
        table = torch.full((len(sequences), width), order[-1], dtype=torch.int32)  # behind the end: a page of NaN
        q, outputs = [], []
        for number, (context, new) in enumerate(sequences):
            total = context + new
            blocks = [order.pop(0) for _ in range(-(-total // page))]
            table[number, : len(blocks)] = torch.tensor(blocks)
            slots = torch.cat([torch.arange(page) + block * page for block in blocks])
            planes[:, slots] = 0.0  # an owned page is finite to its end
            planes[:, slots[:total]] = torch.randn(
                (2, total, num_kv_heads, head_dim), generator=generator
            ).to(DTYPE)  # fmt: skip
            q.append(torch.randn((new, num_heads, head_dim), generator=generator).to(DTYPE))
            outputs.append(exact_attention(q[-1], planes[0, slots[:total]], planes[1, slots[:total]]))
        self.q, self.exact = torch.cat(q).to(device), torch.cat(outputs)
        self.pool = planes.to(device).transpose(0, 1)
        lens = torch.tensor([new for _, new in sequences], dtype=torch.int32)
        num_decodes = sum(new == 1 for _, new in sequences)
        self.metadata = CudaMetadata(
            slot_mapping=torch.zeros(len(self.q), dtype=torch.int32, device=device),
            block_table=table.to(device),
            lengths=torch.tensor([c + n for c, n in sequences], dtype=torch.int32, device=device),
            cu_seqlens=torch.nn.functional.pad(lens.cumsum(0, dtype=torch.int32), (1, 0)).to(device),
            num_decodes=num_decodes,
            new_lens=tuple(new for _, new in sequences[num_decodes:]),
            total_lens=tuple(c + n for c, n in sequences[num_decodes:]),
        )

    def check(self, output: Tensor) -> None:
        actual = output.view(self.exact.shape).float().cpu()
        assert not actual.isnan().any()
        error = (actual - self.exact).norm() / self.exact.norm()
        assert error < 4e-3, f"relative error {error:.1e}"


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal from the end, in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (part.float().repeat_interleave(group, dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * q.shape[2] ** -0.5
    is_future = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(is_future, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("page", [16, 128, 256])
def test_triton_decodes(device: torch.device, heads: tuple[int, int, int], page: int) -> None:
    from engine_core.attention.triton_decode import paged_decode

    batch = Batch([(n - 1, 1) for n in (1, page - 1, page, page + 1, 700)], heads, page, device)
    planes = batch.pool.view(-1, page, *batch.pool.shape[1:])

    batch.check(
        paged_decode(batch.q, planes[:, :, 0], planes[:, :, 1], batch.metadata.block_table, batch.metadata.lengths)
    )


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name, page", [("fa4", 16), ("fa4", 128), ("fa2", 256), ("triton", 16), ("triton", 128)])
@pytest.mark.parametrize(
    "sequences",
    [
        [(n, 1) for n in (0, 15, 127, 128, 255, 256, 900)],
        [(0, 1), (511, 1), (0, 7), (128, 200), (100, 3), (0, 513), (256, 256)],
        [(300, 1)] * 32,
    ],
    ids=["decodes", "mixed", "many decodes"],
)
def test_backends_attend(
    cuda: torch.device, heads: tuple[int, int, int], name: str, page: int, sequences: list[tuple[int, int]]
) -> None:
    from engine_core.attention.choice import has_packages
    from engine_core.attention.cuda import CudaAttention

    if not has_packages(name):
        pytest.skip(f"{name} is not installed")
    batch, attention = Batch(sequences, heads, page, cuda), CudaAttention(name, page)  # type: ignore[arg-type]

    for _ in range(2):  # the first call of flash-attn-4 is recorded, the second one repeats the recording
        batch.check(attention(batch.q, batch.q, batch.pool, batch.metadata))
