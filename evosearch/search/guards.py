"""Guards during a search: violations of the allowed drop of each guarded task. Pure, on recorded data.

A guarded task's points, 100 (m - c) / (1 - c), are compared with those of one baseline, the reference: the base or, if
the recipe has none, the parent that is best at the task. A violation is max(0, drop - max_drop), in points.
"""

from collections.abc import Mapping

Points = Mapping[str, float]  # guarded task → its points


def limits(suite: Mapping[str, object]) -> dict[str, float]:
    """Return guarded task → allowed drop in points, of a recorded suite."""
    guards = suite.get("guards") or ()
    assert isinstance(guards, list | tuple)
    return {guard["task"]: float(guard["max_drop"]) for guard in guards}


def reference(task: str, baselines: Mapping[str, Points], kinds: Mapping[str, str]) -> str | None:
    """Return the reference of a guarded task; None if no base, parent or winner of an earlier stage was scored.

    Args:
        task: The guarded task.
        baselines: Baseline → its points on the full search split.
        kinds: Baseline → `base`, `parent`, `stage`, …
    """
    scored = {name: points[task] for name, points in baselines.items() if task in points}
    for kind in ("base", "parent", "stage"):
        found = [name for name in scored if kinds.get(name) == kind]
        if found:
            return max(found, key=lambda name: scored[name])  # the first of equal ones
    return None


def amounts(limits: Mapping[str, float], reference: Points, own: Points) -> dict[str, float]:
    """Return guarded task → max(0, drop - max_drop), for tasks with known points on both sides."""
    return {
        task: max(0.0, reference[task] - own[task] - limit)
        for task, limit in limits.items()
        if task in reference and task in own
    }
