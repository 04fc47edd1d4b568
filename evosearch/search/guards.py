"""Guards as a search sees them: how far each guarded task has fallen beyond what is allowed. Pure, on recorded data.

A guarded task's points, 100 (m - c) / (1 - c), are held against those of one baseline, the reference: the base or, where
the recipe has none, the parent that is best at the task. A violation is max(0, drop - max_drop), in points.
"""

from collections.abc import Mapping

Points = Mapping[str, float]  # guarded task → its points


def limits(suite: Mapping[str, object]) -> dict[str, float]:
    """Guarded task → the drop that is allowed, of a recorded suite; none where it was recorded without guards."""
    guards = suite.get("guards") or ()
    assert isinstance(guards, list | tuple)
    return {guard["task"]: float(guard["max_drop"]) for guard in guards}


def reference(task: str, baselines: Mapping[str, Points], kinds: Mapping[str, str]) -> str | None:
    """Which baseline a guarded task is held against; None where no base, parent or earlier stage's winner was scored.

    Args:
        baselines: baseline → its points on all of the search split.
        kinds: baseline → `base`, `parent`, `stage`, …
    """
    scored = {name: points[task] for name, points in baselines.items() if task in points}
    for kind in ("base", "parent", "stage"):
        found = [name for name in scored if kinds.get(name) == kind]
        if found:
            return max(found, key=lambda name: scored[name])  # of equal ones the first
    return None


def amounts(limits: Mapping[str, float], reference: Points, own: Points) -> dict[str, float]:
    """Guarded task → max(0, drop - max_drop), for the tasks whose points are known on both sides."""
    return {
        task: max(0.0, reference[task] - own[task] - limit)
        for task, limit in limits.items()
        if task in reference and task in own
    }
