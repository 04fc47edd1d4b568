"""Durations and times as people read them: every line of a log, table and note has these formats."""

import time


def duration(seconds: float) -> str:
    """Format `2 h 5 min`, `1 min 40 s`, `9 s` or `0.2 s`; a negative duration is `0 s`."""
    if 0 < seconds < 1:
        return f"{seconds:.1g} s"
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def clock(seconds: float) -> str:
    """Format a time, in seconds since the epoch, as `2026-11-30 23:59:07` in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
