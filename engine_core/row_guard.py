"""Work on single rows of a pass: one that raises fails its own request, and the others get their tokens. No torch."""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine_core.errors import has_lost_device
from engine_core.plan import RowFailure, Rows

logger = logging.getLogger(__name__)


def each_row(
    rows: Rows, chosen: NDArray[np.intp], work: Callable[[int, int], object], failures: dict[int, RowFailure]
) -> None:
    """`work(index, row)` for the chosen indices of `rows`. A row that raises goes into `failures`; those that are there
    already are left out. Raises what means that the device is lost: that is no single row's."""
    for index in chosen.tolist():
        row = int(rows[index])
        if row in failures:
            continue
        try:
            work(index, row)
        except Exception as error:
            if has_lost_device(error):
                raise
            logger.exception("a row crashed", extra={"row": row})
            failures[row] = RowFailure(f"choosing this request's next token failed: {type(error).__name__}")
