"""Every backend attends as a float32 reference does, over pages in any order, with NaN in every page nobody owns."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata, SharedPrefixes
from engine_core.prefix_groups import rows_per_tile
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
        self.page = page
        generator = torch.Generator().manual_seed(len(sequences))
        num_pages = max(NUM_PAGES, sum(-(-(c + n) // page) for c, n in sequences) + 3)
        planes = torch.full((2, num_pages * page, num_kv_heads, head_dim), float("nan"), dtype=DTYPE)
        order = torch.randperm(num_pages, generator=generator).tolist()
        width = max(-(-(context + new) // page) for context, new in sequences) + 1
        table = torch.full((len(sequences), width), order[-1], dtype=torch.int32)  # behind the end: a page of NaN
        self.slots: list[Tensor] = []
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
            self.slots.append(slots[:total])
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

    def share(self, groups: list[list[int]], lengths: list[int]) -> None:
        """Give the sequences of a group the first one's blocks for so many tokens; all have one new token."""
        table, planes = self.metadata.block_table, self.pool.transpose(0, 1).cpu()
        for group, length in zip(groups, lengths, strict=True):
            for number in group[1:]:
                self.slots[number] = torch.cat((self.slots[group[0]][:length], self.slots[number][length:]))
                table[number, : length // self.page] = table[group[0], : length // self.page]
                exact = exact_attention(
                    self.q[number : number + 1].cpu(), planes[0, self.slots[number]], planes[1, self.slots[number]]
                )
                self.exact[number] = exact[0]

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
@pytest.mark.parametrize("page", [16, 128])
def test_shared_prefixes_are_attended_to_as_if_each_sequence_had_its_own(
    device: torch.device, heads: tuple[int, int, int], page: int
) -> None:
    from engine_core.attention.triton_shared_prefix import shared_prefix_decode

    num_shared = [3 * page] * 11 + [page] * 5 + [0] * 2
    batch = Batch([(shared + own, 1) for own, shared in enumerate(num_shared)], heads, page, device)
    groups = [list(range(6)), list(range(6, 11)), list(range(11, 16))]
    batch.share([[*groups[0], *groups[1]], groups[2]], [3 * page, page])
    size = rows_per_tile(heads[0], heads[1])
    members = torch.full((5, size), -1, dtype=torch.int32)
    for tile, group in enumerate(groups):
        members[tile, : len(group)] = torch.tensor(group)
    shared = SharedPrefixes(
        members.to(device),
        torch.tensor([3 * page, 3 * page, page, 0, 0], dtype=torch.int32, device=device),
        torch.tensor(num_shared, dtype=torch.int32, device=device),
    )
    planes = batch.pool.view(-1, page, *batch.pool.shape[1:])

    batch.check(
        shared_prefix_decode(
            batch.q, planes[:, :, 0], planes[:, :, 1], batch.metadata.block_table, batch.metadata.lengths, shared
        )
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


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name, page", [("fa4", 128), ("fa2", 256), ("triton", 16)])
def test_decodes_that_are_taken_apart_from_prefill(
    cuda: torch.device, heads: tuple[int, int, int], name: str, page: int
) -> None:
    from engine_core.attention.choice import has_packages
    from engine_core.attention.cuda import CudaAttention

    if not has_packages(name):
        pytest.skip(f"{name} is not installed")
    batch = Batch([(n, 1) for n in range(250, 320)] + [(0, 7), (128, 200), (300, 2)], heads, page, cuda)
    whole, n = batch.metadata, batch.metadata.num_decodes
    ends = whole.cu_seqlens[n:] - n
    behind = replace(
        whole, block_table=whole.block_table[n:], lengths=whole.lengths[n:], cu_seqlens=ends, num_decodes=0
    )
    attention = CudaAttention(name, page)  # type: ignore[arg-type]

    for _ in range(2):
        batch.check(attention(batch.q, batch.q, batch.pool, replace(whole, behind=behind)))
