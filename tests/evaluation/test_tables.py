"""The table writer."""

from __future__ import annotations

from dff_jax.evaluation import tables


def test_a_table_aligns_numbers_formats_them_and_marks_the_best():
    lines = tables.markdown(
        [["a", 1.23456, 98.7654, 3], ["b", 1.2345, None, 12], ["c", None, 99.0, 5]],
        ["row", "MAE", "Acc_1", "stacks"],
        best={"MAE": min, "Acc_1": max},
    )
    assert lines == [
        "| row | MAE | Acc_1 | stacks |",
        "| --- | ---: | ---: | ---: |",
        "| a | 1.235 | 98.77 | 3 |",
        "| b | **1.234** | - | 12 |",
        "| c | - | **99.00** | 5 |",
    ]


def test_printed_numbers_stay_as_they_are_and_one_number_is_not_the_best():
    assert tables.markdown([["x", "0.040"]], ["from", "RMS"])[1:] == ["| --- | ---: |", "| x | 0.040 |"]
    assert tables.markdown([["x", 2.0]], ["from", "RMS"], best={"RMS": min})[2] == "| x | 2 |"
    assert tables.markdown([], ["a", "b"]) == ["| a | b |", "| ---: | ---: |"]
