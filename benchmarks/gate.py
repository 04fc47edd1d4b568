"""False-promotion rate and power of the promotion gate, on simulated searches with known true accuracies.

    .venv/bin/python -m benchmarks.gate [--searches N] [--seed N] [--only null|power|coverage]

Simulated candidates answer items. The best candidate on `search` and then on `validation` becomes the finalist, which
`evosearch.promotion.gate.decide` judges on `test`.

null      no candidate is better than the best parent, so every promotion is wrong (N searches per setting, 4000)
power     all candidates are better by a known amount, the baselines are not: promotions of the finalist (N/2 searches)
coverage  two-sided 95% intervals of the finalist's lead that miss the true lead, above and below (N/4 searches)

The share of items that two models answer differently is taken from recorded searches: among SmolLM2-135M merges,
similar merges differ on 2 to 6% of the items, a merge and a parent on 6 to 45%. Prints one JSON document and tables.
Exit code 1 if more than 5% of the decisions in a null setting are wrong; with few searches this may happen by chance.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from scipy.stats import binomtest

from benchmarks._gate_worlds.searches import Setting, simulate
from benchmarks._gate_worlds.settings import coverage_settings, null_settings, power_settings
from benchmarks._report import publish
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import paired_difference
from evosearch.evaluation.statistics.sign_test import paired_sign_test

Measure = Callable[[Setting, int, int], dict[str, Any]]
Show = Callable[[list[dict[str, Any]]], list[str]]
LIMIT = 0.05  # maximum rate of wrong promotions


def promotions(setting: Setting, searches: int, seed: int) -> dict[str, Any]:
    """Count promotions, and how often the finalist beats the best parent by the bound and by the sign test."""
    measure = setting.measure
    promoted = found = bound = signs = 0
    for ended in simulate(setting, searches, seed):
        promoted += ended.decision.promoted is not None
        found += ended.decision.promoted == ended.finalist.candidate
        against = next(c for c in ended.decision.comparisons if c.role == "parent")
        bound += against.beats
        both = (ended.finalist.columns, ended.best_parent.columns, measure.weights, measure.chances, measure.groups)
        signs += paired_sign_test(*both).p_value <= 1 - measure.confidence
    return {
        "setting": setting.name,
        "items": setting.items,
        "gain": setting.gain,
        "searches": searches,
        "promoted": rate(promoted, searches),
        "finalist_promoted": rate(found, searches),
        "finalist_passes_parent": {"bound": rate(bound, searches), "sign_test": rate(signs, searches)},
    }


def coverage(setting: Setting, searches: int, seed: int) -> dict[str, Any]:
    """Share of intervals of the finalist's lead that are entirely above or below the true lead, and their width."""
    measure = setting.measure
    above, below, width = Counter[str](), Counter[str](), dict.fromkeys(("bootstrap", "bound"), 0.0)
    for ended in simulate(setting, searches, seed):
        both = (ended.finalist.columns, ended.best_parent.columns, measure.weights, measure.chances, measure.groups)
        found = {"bootstrap": bootstrap_difference(*both, resamples=2_000), "bound": paired_difference(*both)}
        for name, within in found.items():
            above[name] += within.lower > setting.gain
            below[name] += within.upper < setting.gain
            width[name] += (within.upper - within.lower) / searches
    shown = {
        name: {"above": rate(above[name], searches), "below": rate(below[name], searches), "width": width[name]}
        for name in width
    }
    return {"setting": setting.name, "items": setting.items, "searches": searches, **shown}


def rate(hits: int, of: int) -> dict[str, float]:
    """A proportion with its Clopper-Pearson two-sided 95% interval."""
    within = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return {"value": hits / of, "lower": float(within.low), "upper": float(within.high)}


def null_table(rows: list[dict[str, Any]]) -> list[str]:
    """False promotions by setting."""
    lines = ["| no candidate is better | test items | wrong promotions | bound passes | sign test passes |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        passes = row["finalist_passes_parent"]
        cells = [f"{row['items']:,}", shown(row["promoted"]), shown(passes["bound"]), shown(passes["sign_test"])]
        lines.append(f"| {row['setting']} | {' | '.join(cells)} |")
    return lines


def power_table(rows: list[dict[str, Any]]) -> list[str]:
    """Promotions of the finalist by true gain and number of test items."""
    sizes = sorted({row["items"] for row in rows})
    lines = [f"| true gain, points | {' | '.join(f'{size:,} items' for size in sizes)} |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for name in dict.fromkeys(row["setting"] for row in rows):
        by_size = {row["items"]: row["finalist_promoted"] for row in rows if row["setting"] == name}
        lines.append(f"| {name} | {' | '.join(shown(by_size[size], 0) for size in sizes)} |")
    return lines


def coverage_table(rows: list[dict[str, Any]]) -> list[str]:
    """Misses and relative widths of bootstrap and bound."""
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
    """A proportion and its interval in percent."""
    value, lower, upper = (f"{100 * share[key]:.{digits}f}" for key in ("value", "lower", "upper"))
    return f"{value}% [{lower}, {upper}]"


def main() -> int:
    """Simulate the settings; return 1 if a null setting exceeds `LIMIT`."""
    parser = argparse.ArgumentParser("python -m benchmarks.gate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--searches", type=int, default=4_000, help="per null setting, default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("null", "power", "coverage"))
    options = parser.parse_args()
    began = time.monotonic()
    found: dict[str, Any] = {"seed": options.seed, "searches": options.searches}
    tables_of: tuple[tuple[str, Measure, Show, list[Setting], int], ...] = (
        ("null", promotions, null_table, null_settings(), options.searches),
        ("power", promotions, power_table, power_settings(), max(1, options.searches // 2)),
        ("coverage", coverage, coverage_table, coverage_settings(), max(1, options.searches // 4)),
    )
    tables = []
    for name, measure, show, settings, searches in tables_of:
        if options.only not in (None, name):
            continue
        found[name] = []
        for index, setting in enumerate(settings):
            found[name].append(measure(setting, searches, options.seed + 1000 * index))
            print(f"{time.monotonic() - began:5.0f} s  {name}: {setting.name}", file=sys.stderr)
        tables.append("\n".join(show(found[name])))
    found["seconds"] = time.monotonic() - began
    publish(found, *tables)
    return int(any(row["promoted"]["value"] > LIMIT for row in found.get("null", ())))


if __name__ == "__main__":
    sys.exit(main())
