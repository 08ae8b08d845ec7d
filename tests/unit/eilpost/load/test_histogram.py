"""Latency histogram: percentiles are within 2 % of the exact values."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from eilpost.load.histogram import Histogram


@given(st.lists(st.floats(2e-4, 5000), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_within_two_percent(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    percentile = histogram.percentile(share)
    assert percentile is not None
    assert exact / 1.021 <= percentile <= exact * 1.021


def test_percentiles_of_extreme_values() -> None:
    histogram = Histogram()
    assert histogram.percentile(0.5) is None
    for value in (0.0, -0.1, 1e9):
        histogram.add(value)
    assert histogram.count == 3
    assert histogram.percentile(0.5) == 1e-4
    assert histogram.highest == 1e9


def test_percentile_since_earlier_counts() -> None:
    histogram = Histogram()
    for _ in range(100):
        histogram.add(1.0)
    then = histogram.counts()
    assert histogram.percentile(0.5, since=then) is None
    histogram.add(0.01)
    percentile = histogram.percentile(0.5, since=then)
    assert percentile is not None
    assert 0.0098 <= percentile <= 0.0102
