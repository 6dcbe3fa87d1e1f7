"""Faults of rows: each costs its own row, and all are told together."""

import pytest

from mmgpt.data.faults import Faults, RowsError
from mmgpt.errors import DataError


def test_a_fault_ends_its_own_row_and_all_are_raised_together():
    faults, read = Faults(), []
    for number in range(5):
        with faults.row():
            if number % 2:
                raise DataError(f"x:{number}: malformed")
            read.append(number)
    faults.missing += ["a.png is missing", "b.png is missing"]
    assert read == [0, 2, 4]
    with pytest.raises(RowsError, match=r"^x:1: malformed \(1 more are malformed, 2 more are missing\)$") as raised:
        faults.raise_all()
    assert raised.value.malformed == ["x:1: malformed", "x:3: malformed"]
    assert raised.value.missing == ["a.png is missing", "b.png is missing"]


def test_without_faults_nothing_is_raised_and_other_errors_pass():
    faults = Faults()
    faults.raise_all()
    with pytest.raises(ZeroDivisionError), faults.row():
        _ = 1 / 0


def test_the_faults_of_rows_within_are_taken_over():
    inner, outer = Faults(), Faults()
    inner.malformed, inner.missing = ["x:1: malformed"], ["a.png is missing"]
    with outer.row():
        inner.raise_all()
    assert (outer.malformed, outer.missing) == (inner.malformed, inner.missing)
