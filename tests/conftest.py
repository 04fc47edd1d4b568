"""What every test stands on: no network, two threads at most, nothing written into the user's own folders."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test openings are counted in a folder of this test run, not in the user's."""
    monkeypatch.setenv("EVOSEARCH_DATA", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session")
def zoo_cache() -> Path:
    """A cache folder in which the tiny zoo is trained: the user's own, since names there follow content."""
    from evosearch.zoo.tiny_models import TINY, ensure

    from evosearch.checkpoints.references import default_cache

    cache = default_cache()
    for name in TINY:
        ensure(name, cache)
    return cache
