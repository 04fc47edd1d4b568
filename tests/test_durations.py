"""Durations as people read them."""

import time

import pytest

from evosearch.durations import clock, duration


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


def test_a_time_has_one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert clock(1796083147.9) == "2026-11-30 23:59:07"
    finally:
        monkeypatch.undo()
        time.tzset()
