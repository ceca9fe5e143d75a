"""Scales that people can read."""

import pytest

from loadtests.line_chart import panel, round_above, shown


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.01, 2), (17.2, 20), (0.0394, 0.04), (434, 1000), (4340, 10000), (200, 200)]
)
def test_an_axis_ends_above_its_values_at_a_round_number(value: float, top: float) -> None:
    assert round_above(value) == pytest.approx(top)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0005, "percentunit", "0.05%"), (1.0, "percentunit", "100%"), (0.5, "s", "500 ms"), (0.0, "s", "0 s"),
     (99.9e6, "bytes", "99.9 MB"), (17.2, "reqps", "17.2 /s"), (4000, "short", "4 k"), (float("nan"), "s", "-")],
)  # fmt: skip
def test_values_have_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_the_highest_value_is_drawn_below_the_top() -> None:
    parts = "".join(panel("Requests", [("2xx", [(0.0, 1.0), (1.0, 17.2)])], "reqps", 0, 0, 300, 200))

    assert ">20 /s<" in parts and ">10 /s<" in parts
