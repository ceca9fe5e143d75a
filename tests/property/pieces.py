"""Texts cut at random places."""

from itertools import pairwise

from hypothesis import strategies as st


def cuts() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 400), max_size=30)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces; a place behind its end is where it falls modulo the length, and pieces may be empty."""
    inner = sorted(place % (len(text) + 1) for place in places)
    return [text[start:end] for start, end in pairwise([0, *inner, len(text)])]
