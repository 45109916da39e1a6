"""Which of very many classes are worth showing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def telling_classes(before: np.ndarray, after: Sequence[np.ndarray], most: int) -> list[int]:
    """At most so many classes: first those that changed most, then those with most errors; in their order.

    Args:
        before, after: (classes, classes) counts, rows are the true classes.
    """
    count = len(before)
    if count <= most:
        return list(range(count))
    moved = np.zeros(count, np.int64)
    for table in after:
        rows, columns = np.nonzero(table != before)  # few, where a table of differences would be as large as the matrix
        apart = np.where(rows == columns, 0, np.abs(table[rows, columns] - before[rows, columns]))
        np.add.at(moved, rows, apart)
        np.add.at(moved, columns, apart)
    wrong = before.sum(0) + before.sum(1) - 2 * np.diag(before)
    order = np.lexsort((np.arange(count), -wrong, -moved))
    return sorted(order[:most].tolist())
