"""What must stand beside every figure of a test set. Pure."""

CONTAMINATED = (
    "The suite acknowledges contamination: models were searched or chosen on test documents of a public benchmark, so "
    "its figures cannot be held against those of other models there."
)


def opened(times: int) -> str:
    """How often a test set has been looked at: each time was one more try at passing it."""
    return f"This test set has been opened {times} time(s) on record, by all searches."
