"""Statements that accompany every reported test score. Pure."""

CONTAMINATED = (
    "The suite acknowledges contamination: models were searched or chosen on test documents of a public benchmark, so "
    "their scores are not comparable to those of other models on that benchmark."
)


def opened(times: int) -> str:
    """State how often a test set was opened; each opening is one more attempt to pass it."""
    return f"This test set has been opened {times} time(s) on record, by all searches."


def disclosures(times: int | None, contaminated: bool | None = False) -> list[str]:
    """Return the statements that accompany test scores; openings are stated if there were any.

    Args:
        times: How often the test set was opened; None if this is unknown.
        contaminated: Whether the suite acknowledges contamination.
    """
    return [*([opened(times)] if times else []), *([CONTAMINATED] if contaminated else [])]
