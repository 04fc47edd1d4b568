"""One number for each kind of projection, layer and expert."""

from benchmarks.board.entries import Json, Method, Problem


def weight(problem: Problem) -> Json:
    """Hole with a number per kind of projection and layer."""
    return {"per": "module"}


METHOD = Method(text="a number per kind of projection, layer and expert, told the expected score", weight=weight)
