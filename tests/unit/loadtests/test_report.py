"""What the reports of all load tests are made of."""

import pytest

from loadtests.report import quantile_of


def test_quantiles_are_values_that_were_seen() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]

    assert [quantile_of(values, quantile) for quantile in (0, 0.5, 0.99, 1)] == [1.0, 3.0, 5.0, 5.0]


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile_of([], 0.5)
