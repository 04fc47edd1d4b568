"""Role and state of every run, by which the leaderboard in MLflow is read and filtered.

| tag | values |
|---|---|
| role | `search`, `candidate`, `baseline`, `finalist`, `champion`, `former champion` |
| state | `pending`, `scored`, `answer`, `duplicate of #2`, `failed`, `winner`, `promoted` |

A baseline stays a baseline if it is a finalist; its tag `finalist_rank` shows it. A candidate that fails on a later
split keeps its state, and has the tag `failure`.
"""

from evosearch.search.records import is_candidate
from evosearch.search.titles import title

ROLE, STATE = "role", "state"  # tags
CHAMPION = "champion"  # name of the registered champion that a winner is compared with, and a role
FORMER = "former champion"
Tags = dict[str, str]


class Roles:
    """Roles and states of the runs of one search, as its events are read."""

    def __init__(self) -> None:
        self._scored: set[str] = set()
        self._answers: set[str] = set()
        self._chosen: str | None = None  # winner, or promoted model
        self._promoted: str | None = None
        self._champion = False  # a registered champion was scored

    def begun(self, name: str, duplicate_of: str | None = None, answer: bool = False) -> Tags:
        """Return the tags of a model that is proposed."""
        if answer:
            self._answers.add(name)
        kind = name.partition(":")[0]
        role = "candidate" if is_candidate(name) else {"reseeded": "finalist", CHAMPION: CHAMPION}.get(kind, "baseline")
        return {ROLE: role, STATE: f"duplicate of {title(duplicate_of)}" if duplicate_of else "pending"}

    def scored(self, name: str) -> Tags:
        """Return the tags of a model with a score."""
        self._scored.add(name)
        if name == CHAMPION:
            self._champion = True
        return {} if name == self._chosen else {STATE: "answer" if name in self._answers else "scored"}

    def failed(self, name: str) -> Tags:
        """Return the tags of a model that failed for good on a split."""
        return {} if name in self._scored else {STATE: "failed"}

    def finalist(self, name: str) -> Tags:
        """Return the tags of a finalist."""
        return {ROLE: "finalist"} if is_candidate(name) and name != self._promoted else {}

    def won(self, name: str) -> dict[str, Tags]:
        """Return name → tags of the models that the choice of a winner changes."""
        if name == self._promoted:
            return {}
        changed = {self._chosen: {STATE: "scored"}} if self._chosen not in (None, name, self._promoted) else {}
        self._chosen = name
        return {one: tags for one, tags in (changed | {name: {STATE: "winner"}}).items() if one is not None}

    def promoted(self, name: str) -> dict[str, Tags]:
        """Return name → tags of the models that a promotion changes."""
        changed: dict[str, Tags] = {}
        if self._promoted not in (None, name):
            changed[str(self._promoted)] = {ROLE: FORMER, STATE: "scored"}
        if self._champion and name != CHAMPION:
            changed[CHAMPION] = {ROLE: FORMER}
        self._chosen = self._promoted = name
        return changed | {name: {ROLE: CHAMPION, STATE: "promoted"}}
