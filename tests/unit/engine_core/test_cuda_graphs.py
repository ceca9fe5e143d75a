"""Batch buckets of the captured graphs."""

import pytest

from engine_core.cuda_graphs import DecodeGraphs, buckets_up_to


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 9, 16, 17, 100, 256, 257, 300, 511, 512, 513, 1000, 1024])
def test_buckets_ascend_to_the_maximum_and_pad_little(max_num_seqs: int) -> None:
    buckets = buckets_up_to(max_num_seqs)
    graphs = DecodeGraphs(buckets, lambda bucket: None)

    assert buckets == sorted(set(buckets)) and buckets[-1] == max_num_seqs
    for num_seqs in range(1, max_num_seqs + 1):
        bucket = graphs.bucket(num_seqs)
        assert num_seqs <= bucket <= max(2 * num_seqs, num_seqs + 16, num_seqs * 9 // 8)
