"""Changes of MLflow runs, as the translation of events gives them and a writer applies them.

A change states the final content of a run (tags, metrics with their own step and time, a recipe, files, a status), not
an increment, so applying it twice has no further effect.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from evosearch.tracking.inputs import RunInput

SEARCH = ""  # key of the search's own run; other keys are candidates
OPENINGS, CONTAMINATION = "test_openings", "contamination_acknowledged"  # tags of runs with a test score
UNVERIFIED = "unverified"  # tag of a search that promoted without right answers
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


@dataclass(frozen=True)
class Point:
    """One value of a metric; writing the same name, step and time again has no effect."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass
class Changes:
    """Changes of one run."""

    started_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # artifact path → text
    recipe: Callable[[], str] | None = None  # renders the run's recipe as YAML
    recipe_file: bool = False  # the recipe is also an artifact
    status: str | None = None
    status_ms: int = 0
    inputs: list[RunInput] = field(default_factory=list)  # of the search's own run only
    experiment: dict[str, str] = field(default_factory=dict)  # tags of the experiment; of the search's own run only
    name: str = ""  # of a run that is created; the search's own has the name of the search


Plan = dict[str, Changes]  # candidate, or SEARCH → its changes
