"""Keys of a config.json that are to blame: for an error of transformers, or for the size of a tensor.

transformers seldom names the key. It is found by trying: the key without which the error disappears, and the keys whose
value changes the size.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]  # parameter → shape

IDENTITY = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version")  # never to blame


def blamed(config: Config, attempt: Callable[[Config], object]) -> str | None:
    """Return the key of a config without which `attempt` succeeds, so that the key's default applies; None if none.

    Args:
        config: Contents of a JSON file with which `attempt` fails.
        attempt: Raises an exception if it fails.
    """
    for key in sorted(config, key=lambda key: not _suspicious(config[key])):
        if key in IDENTITY:
            continue
        try:
            attempt({other: value for other, value in config.items() if other != key})
        except Exception:  # noqa: S112 (this key is not the only one to blame)
            continue
        return key
    return None


def _suspicious(value: Any) -> bool:
    """Return whether a value is likely to be the wrong one of several that contradict each other."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not value > 0


def deciding(
    config: Config, wrong: Mapping[str, Collection[int]], shapes: Callable[[Config], Shapes], fixed: Collection[str]
) -> list[str]:
    """Return the keys of a config that decide the wrong sizes of some parameters.

    Args:
        config: Contents of config.json, or those and the defaults of missing keys.
        wrong: Parameter → its axes of a wrong size.
        shapes: config → shape of every parameter; raises an exception for a config that cannot be built.
        fixed: Keys that are not considered.

    Returns:
        The keys that decide wrong sizes and no right ones, preferably all wrong sizes; without such keys, those that
        decide the first wrong size.
    """
    before = shapes(config)
    places = [(name, axis) for name, axes in wrong.items() for axis in axes]
    decides: dict[str, set[tuple[str, int]]] = {}
    for key in (key for key, value in config.items() if type(value) is int and key not in fixed):
        after = _with_other(config, key, shapes) or {}
        pairs = ((name, axis) for name, shape in after.items() if name in before for axis in range(len(shape)))
        decides[key] = {(name, axis) for name, axis in pairs if after[name][axis] != before[name][axis]}
    only_wrong = [key for key, found in decides.items() if found and found <= set(places)]
    all_wrong = [key for key in only_wrong if decides[key] == set(places)]
    return all_wrong or only_wrong or [key for key, found in decides.items() if places[0] in found]


def _with_other(config: Config, key: str, shapes: Callable[[Config], Shapes]) -> Shapes | None:
    """Return the shapes with another value of a key, of those that its other keys allow; None if none builds."""
    value = config[key]
    for other in (2 * value, value // 2) if value > 0 else (1, 2):
        try:
            return shapes({**config, key: other})
        except Exception:  # noqa: S112 (the value contradicts another key)
            continue
    return None
