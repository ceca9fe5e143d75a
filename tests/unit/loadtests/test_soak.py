"""What the soak makes of its samples."""

import pytest

from loadtests.chaos import soak


def test_the_slope_of_a_line_is_its_own_whatever_lies_on_it() -> None:
    assert soak.slope([(at, 3.0 + 0.5 * at) for at in (0.0, 1.0, 5.0, 6.0)]) == pytest.approx(0.5)
    assert soak.slope([(0.0, 1.0), (1.0, 5.0), (2.0, 1.0)]) == pytest.approx(0.0)
    assert soak.slope([(0.0, 1.0)]) == 0.0
