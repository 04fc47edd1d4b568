"""Settings of the simulations: least favourable null settings, true gains, and hard cases for intervals."""

from dataclasses import replace

from benchmarks._gate_worlds.searches import Setting
from benchmarks._gate_worlds.world import Task, uneven

SIZES = (300, 1_000, 3_000)  # test items
# Share of items that two models answer differently: two similar merges (NEAR), a merge and a parent (FAR)
NEAR, FAR = 0.06, 0.25


def one(items: int, differ: float, accuracy: float = 0.6) -> tuple[Task, ...]:
    """One task of ungrouped items."""
    return (Task(1.0, 0.0, accuracy, differ, items),)


def three(items: int) -> tuple[Task, ...]:
    """Three tasks with different weights, chance levels, difficulties and sizes."""
    return (
        Task(0.5, 0.5, 0.85, 0.10, items // 2),
        Task(0.3, 0.25, 0.60, 0.25, items * 3 // 10),
        Task(0.2, 0.0, 0.35, 0.20, items - items // 2 - items * 3 // 10),
    )


def clustered(groups: tuple[int, ...], differ: float = FAR) -> tuple[Task, ...]:
    """One task of grouped items, where a model's answers within a group are correlated."""
    return (Task(1.0, 0.0, 0.6, differ, sum(groups), groups, shared=0.3),)


def null_settings() -> list[Setting]:
    """Settings in which candidates equal the best parent, and baselines too unless the name says otherwise."""
    far, near = f"one task, {FAR:.0%} differ", f"one task, {NEAR:.0%} differ"
    found = [Setting(far, one(items, FAR)) for items in SIZES]
    found += [Setting(f"{far}, baselines worse", one(items, FAR), baseline_equal=False) for items in SIZES]
    found += [Setting(near, one(items, NEAR)) for items in SIZES]
    found += [Setting("one task, 1% differ", one(items, 0.01)) for items in SIZES]
    found += [Setting("one task, 97% right, 3% differ", one(300, 0.03, 0.97))]
    found += [Setting(f"{far}, 400 candidates", one(300, FAR), candidates=400)]
    found += [Setting("three tasks, unlike weights", three(items)) for items in SIZES]
    found += [
        Setting("60 groups of 5", clustered((5,) * 60)),
        Setting("60 uneven groups", clustered(uneven(60, 300))),
        Setting("100 uneven groups", clustered(uneven(100, 1_000))),
        Setting("100 uneven groups, 6% differ", clustered(uneven(100, 1_000), NEAR)),
        Setting("20 uneven groups", clustered(uneven(20, 1_000))),
        Setting("150 uneven groups", clustered(uneven(150, 3_000))),
    ]
    return found


def power_settings() -> list[Setting]:
    """Settings in which candidates are truly better than the best parent, and baselines equal it."""
    return [
        Setting(f"{gain}, {differ:.0%} of items differ", one(items, differ), gain=float(gain))
        for differ in (NEAR, FAR)
        for gain in (1, 3, 5)
        for items in SIZES
    ]


def coverage_settings() -> list[Setting]:
    """A selection of the null settings, and one with a true gain."""
    nulls = {(setting.name, setting.items): setting for setting in null_settings()}
    chosen = [
        *((f"one task, {FAR:.0%} differ", items) for items in SIZES),
        *((f"one task, {NEAR:.0%} differ", items) for items in SIZES),
        ("one task, 1% differ", 300),
        ("one task, 97% right, 3% differ", 300),
        ("three tasks, unlike weights", 300),
        ("60 groups of 5", 300),
        ("100 uneven groups", 1_000),
        ("20 uneven groups", 1_000),
    ]
    gained = replace(nulls["one task, 25% differ", 300], name="one task, 25% differ, true lead 5", gain=5.0)
    return [*(nulls[key] for key in chosen), gained]
