"""Known answers of Philox4x32-10, from the Random123 distribution (kat_vectors), and the uniforms made of it."""

import numpy as np

from engine_core.philox import philox4x32, uniforms

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def column(value: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.array([value], np.uint64)


def test_known_answers() -> None:
    for counter, key, expected in KNOWN:
        c0, c1, c2, c3 = map(column, counter)
        k0, k1 = map(column, key)

        words = philox4x32((c0, c1, c2, c3), (k0, k1))

        assert tuple(int(word[0]) for word in words) == expected


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    draws = uniforms(np.full(100_000, 7, np.uint64), np.arange(100_000, dtype=np.uint64))

    counts, _ = np.histogram(draws, bins=100, range=(0.0, 1.0))
    assert draws.min() >= 0.0 and draws.max() < 1.0
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi-square, 99 degrees of freedom: p > 0.0007


def test_a_draw_depends_on_its_own_row_alone() -> None:
    seeds, positions = np.arange(50, dtype=np.uint64), np.arange(50, dtype=np.uint64) * np.uint64(3)

    together = uniforms(seeds, positions)
    alone = [uniforms(seeds[n : n + 1], positions[n : n + 1])[0] for n in range(50)]

    assert together.tolist() == alone
    assert len(set(alone)) == 50
