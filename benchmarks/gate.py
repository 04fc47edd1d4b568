#!/usr/bin/env python3
"""How often the gate promotes wrongly, and how often it sees a true gain, as one JSON document and tables.

    scripts/bench/gate [--searches N] [--seed N] [--only null|power|coverage]

Candidates answer items; the best on `search` and then on `validation` becomes the finalist, and
`evosearch.promotion.gate.decide` judges it on `test`. In the first table (N searches a setting, 4000 by default) no
candidate is better than the best parent, so every promotion is wrong. In the second (half as many) all are, by a known
amount, and the baselines are not; only the finalist's promotion counts. The third (a quarter) is how often two-sided 95%
intervals of the finalist's lead miss the truth, from above and from below. How many items two models answer differently
is taken from recorded searches: of SmolLM2-135M merges, neighbours differ on 2 to 6% of the items, a merge and a parent
on 6 to 45%. Exit code 1 where more than 5% of a setting's decisions are wrong.
"""

import argparse
import json
import sys
import time
from typing import Any

from scipy.stats import binomtest

from benchmarks._gate_worlds.searches import Setting, simulate
from benchmarks._gate_worlds.settings import coverage_settings, null_settings, power_settings
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import paired_difference

LIMIT = 0.05  # of wrong promotions


def promotions(setting: Setting, searches: int, seed: int) -> dict[str, Any]:
    """How many searches promoted, and how often the finalist passed the best parent by bound and by exact test."""
    promoted = found = bound = exact = 0
    for ended in simulate(setting, searches, seed):
        promoted += ended.decision.promoted is not None
        found += ended.decision.promoted == ended.finalist.candidate
        against = next(c for c in ended.decision.comparisons if c.role == "parent")
        bound += against.beats
        exact += against.p_value <= 1 - setting.measure.confidence
    return {
        "setting": setting.name,
        "items": setting.items,
        "gain": setting.gain,
        "searches": searches,
        "promoted": rate(promoted, searches),
        "finalist_promoted": rate(found, searches),
        "finalist_passes_parent": {"bound": rate(bound, searches), "exact_test": rate(exact, searches)},
    }


def coverage(setting: Setting, searches: int, seed: int) -> dict[str, Any]:
    """How often each interval of the finalist's lead lies wholly above the true lead, or below it; and its width."""
    measure = setting.measure
    counts = {name: [0, 0, 0.0] for name in ("bootstrap", "bound")}
    for ended in simulate(setting, searches, seed):
        both = (ended.finalist.columns, ended.best_parent.columns, measure.weights, measure.chances, measure.groups)
        found = {"bootstrap": bootstrap_difference(*both, resamples=2_000), "bound": paired_difference(*both)}
        for name, within in found.items():
            counts[name][0] += within.lower > setting.gain
            counts[name][1] += within.upper < setting.gain
            counts[name][2] += within.upper - within.lower
    shown = {
        name: {"above": rate(above, searches), "below": rate(below, searches), "width": width / searches}
        for name, (above, below, width) in counts.items()
    }
    return {"setting": setting.name, "items": setting.items, "searches": searches, **shown}


def rate(hits: int, of: int) -> dict[str, float]:
    """A share with its exact (Clopper-Pearson) two-sided 95% interval."""
    within = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return {"value": hits / of, "lower": float(within.low), "upper": float(within.high)}


def null_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| no candidate is better | test items | wrong promotions | bound passes | exact test passes |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        passes = row["finalist_passes_parent"]
        cells = [f"{row['items']:,}", shown(row["promoted"]), shown(passes["bound"]), shown(passes["exact_test"])]
        lines.append(f"| {row['setting']} | {' | '.join(cells)} |")
    return lines


def power_table(rows: list[dict[str, Any]]) -> list[str]:
    sizes = sorted({row["items"] for row in rows})
    lines = [f"| true gain, points | {' | '.join(f'{size:,} items' for size in sizes)} |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for name in dict.fromkeys(row["setting"] for row in rows):
        by_size = {row["items"]: row["finalist_promoted"] for row in rows if row["setting"] == name}
        lines.append(f"| {name} | {' | '.join(shown(by_size[size], 0) for size in sizes)} |")
    return lines


def coverage_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| two-sided 95% intervals | test items | bootstrap misses | bound misses | width, bootstrap : bound |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        missed = [
            f"{100 * row[name]['above']['value']:.1f}% + {100 * row[name]['below']['value']:.1f}%"
            for name in ("bootstrap", "bound")
        ]
        ratio = row["bootstrap"]["width"] / row["bound"]["width"]
        lines.append(f"| {row['setting']} | {row['items']:,} | {' | '.join(missed)} | {ratio:.2f} |")
    return lines


def shown(share: dict[str, float], digits: int = 1) -> str:
    value, lower, upper = (f"{100 * share[key]:.{digits}f}" for key in ("value", "lower", "upper"))
    return f"{value}% [{lower}, {upper}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("null", "power", "coverage"))
    options = parser.parse_args()
    began = time.monotonic()
    found: dict[str, Any] = {"seed": options.seed, "searches": options.searches}
    parts = (
        ("null", promotions, null_table, null_settings(), options.searches),
        ("power", promotions, power_table, power_settings(), max(1, options.searches // 2)),
        ("coverage", coverage, coverage_table, coverage_settings(), max(1, options.searches // 4)),
    )
    tables = []
    for part, measured, table, settings, searches in parts:
        if options.only not in (None, part):
            continue
        found[part] = []
        for index, setting in enumerate(settings):
            found[part].append(measured(setting, searches, options.seed + 1000 * index))
            print(f"{time.monotonic() - began:5.0f} s  {part}: {setting.name}", file=sys.stderr)
        tables.append("\n".join(table(found[part])))
    found["seconds"] = time.monotonic() - began
    print(json.dumps(found))
    print("\n\n".join(tables), file=sys.stderr)
    return int(any(row["promoted"]["value"] > LIMIT for row in found.get("null", ())))


if __name__ == "__main__":
    sys.exit(main())
