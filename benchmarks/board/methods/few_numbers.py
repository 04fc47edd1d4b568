"""Few numbers: one for each group of layers and expert."""

from benchmarks.board.entries import Json, Method, Problem


def weight(problem: Problem) -> Json:
    """Hole with a number per group; embeddings and final norm use the adjacent group's."""
    return {"per": "group", "groups": problem.groups, "ends": "shared"}


METHOD = Method(text="a number per group of layers and expert, told the expected score", weight=weight)
