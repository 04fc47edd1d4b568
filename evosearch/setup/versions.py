"""Library versions, recorded with each search: other builds may change the last bits of a score."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "evosearch",
    "torch",
    "transformers",
    "lm-eval",
    "cma",
    "cmaes",
    "optuna",
    "greenlet",
    "numpy",
    "ray",
    "mlflow",
)


def versions() -> dict[str, str]:
    """Package → version, with that of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
