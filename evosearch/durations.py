"""Durations as people read them."""


def duration(seconds: float) -> str:
    """Format `2 h 5 min`, `1 min 40 s`, `9 s` or `0.2 s`; a negative duration is `0 s`."""
    if 0 < seconds < 1:
        return f"{seconds:.1g} s"
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
