"""Titles of candidates and baselines: the same words for one model in tables, reports and tracking stores.

| name in the ledger | title |
|---|---|
| `17` | `#17` |
| `base`, `parent:1` | `base tiny`, `parent sort`: with the label of the model |
| `stage:heads` | `winner of stage heads` |
| `uniform` | `uniform average` |
| `scale:0.60` | `scale 0.6` |
| `trained:4000` | `fine-tuned best scale` |
| `placebo:12` | `placebo: random task vectors` |
| `reseeded:17:1` | `#17, mask seed 1` |
| `champion` | `champion of the registry` |

Commands take names and titles; JSON has the names, and a title next to them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from evosearch.search.records import is_candidate
from evosearch.search.space.labels import labels

OF_A_MODEL = re.compile(r"models\[(\d+)\]\.(.+)", re.DOTALL)  # a dimension in the parameters of one model
FIXED = {
    "uniform": "uniform average",
    "trained": "fine-tuned best scale",
    "placebo": "placebo: random task vectors",
    "champion": "champion of the registry",
}


def title(name: str, recipe: Mapping[str, Any] | None = None, references: Iterable[str] = ()) -> str:
    """Return the title of a candidate or baseline.

    >>> title("17"), title("scale:0.60"), title("stage:heads")
    ('#17', 'scale 0.6', 'winner of stage heads')
    >>> title("parent:1", {"models": [{"model": "zoo:tiny/sort"}]}, ["zoo:tiny/base", "zoo:tiny/sort"])
    'parent sort'

    Args:
        name: Its name in the ledger.
        recipe: Recipe of a base or parent, as plain data.
        references: All models of the search, among which labels are unique.
    """
    kind, _, rest = name.partition(":")
    if is_candidate(name):
        return f"#{name}"
    if kind in ("base", "parent"):
        return _of_model(kind, name, recipe, references)
    if kind == "stage":
        return f"winner of stage {rest}"
    if kind == "scale":
        return f"scale {float(rest):g}"
    if kind == "reseeded":
        finalist, _, seed = rest.rpartition(":")
        return f"{title(finalist)}, mask seed {seed}"
    return FIXED.get(kind, name)


def _of_model(kind: str, name: str, recipe: Mapping[str, Any] | None, references: Iterable[str]) -> str:
    """Return `parent sort`; the name itself without a recipe, and only `base` for a base with that label."""
    if not recipe or not recipe.get("models"):
        return name
    model = str(recipe["models"][0]["model"])
    label = labels(tuple(dict.fromkeys([*references, model])))[model]
    return kind if label == kind else f"{kind} {label}"


def dimension_title(name: str, recipe: Mapping[str, Any]) -> str:
    """Return the title of a dimension or hole: the label of its model instead of an index.

    >>> dimension_title("models[1].weight[layers 0-1]", {"models": [{"model": "zoo:base"}, {"model": "zoo:sort"}]})
    'sort.weight[layers 0-1]'

    Args:
        name: Name of the dimension or of its hole.
        recipe: A recipe of the search as plain data, which names the models.
    """
    found, models = OF_A_MODEL.fullmatch(name), recipe.get("models") or ()
    if found is None or int(found[1]) >= len(models):
        return name
    known = tuple(str(one["model"]) for one in models)
    model = known[int(found[1])]
    # A model that is listed twice has an index, which tells its two entries apart
    return name if known.count(model) > 1 else f"{labels(known)[model]}.{found[2]}"
