"""Folders of the checkout that the benchmarks read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # also the PYTHONPATH of processes that import `benchmarks`
RECIPES, EVALS = ROOT / "recipes", ROOT / "evals"
