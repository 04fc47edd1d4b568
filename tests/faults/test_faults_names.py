"""The registry of own names is complete: it has everything that real runs write, and nothing else."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evosearch.cli.cluster import FOLDER
from evosearch.spec.own_names import CLUSTER_FOLDER, OWN_NAMES, use_of

Evosearch = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
Searches = frozenset[str]


class Watching:
    """Collects the names in folders while a program runs, also of files that exist for a moment only."""

    def __init__(self, *folders: Path) -> None:
        self.names: set[str] = set()
        self._folders, self._done = folders, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._look()

    def _look(self) -> None:
        for folder in self._folders:
            if folder.is_dir():
                self.names |= {entry.name for entry in folder.iterdir()}

    def __enter__(self) -> "Watching":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()


@pytest.mark.slow
def test_every_name_that_a_run_writes_is_registered(
    planted: World, world: World, evosearch: Evosearch, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    promoted = planted("night", tracking={}, budget={"candidates": 2}, baselines={"scales": []})
    staged = world("day", ledger=f"sqlite:///{tmp_path}/shared.db", budget={"candidates": 2})
    data = yaml.safe_load(staged.read_text())
    first = {key: data.pop(key) for key in ("recipe", "optimizer", "budget")}
    first["optimizer"] = {"name": "random", "start": "init"}
    second = first | {"optimizer": {"name": "random", "warm_start": "stage:one"}}
    data["stages"] = [{"name": "one"} | first, {"name": "two"} | second]
    staged.write_text(yaml.safe_dump(data))
    folders = (runs, runs / "night", runs / "day", runs / "day" / "one", runs / "day" / "two")
    with Watching(*folders) as watching:
        assert evosearch("run", promoted)[0] == 0
        assert evosearch("run", staged)[0] in (0, 3)
        assert evosearch("report", promoted)[0] == 0
    chosen = {"night", "day", "one", "two", "events.jsonl"}  # by the specs
    assert chosen <= watching.names
    assert {name for name in watching.names - chosen if use_of(name) is None} == set()
    assert OWN_NAMES.keys() - {name.casefold() for name in watching.names} == {CLUSTER_FOLDER}
    assert Path(FOLDER.default).parts == ("runs", CLUSTER_FOLDER)
