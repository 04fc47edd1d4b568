"""Which library builds a search ran with: recorded, since other builds may give other last bits."""

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
    """Package → version, and the Python that runs them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
