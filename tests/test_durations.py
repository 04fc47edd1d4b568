"""Durations as people read them."""

import pytest

from evosearch.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0, "0 s"),
        (0.17, "0.2 s"),
        (9.9, "9 s"),
        (100, "1 min 40 s"),
        (3600, "1 h 0 min"),
        (7509, "2 h 5 min"),
        (4.2e6, "1,166 h 40 min"),
    ],
)
def test_a_duration_has_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text
