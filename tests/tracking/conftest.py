"""A recorded search to mirror, in a real ledger, and an MLflow store that is built only once."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from evosearch.evaluation.types import Estimate, ItemBatch, ItemSet, ScoreCard, TaskScore, Tokens
from evosearch.search.ledger.ledger import Ledger
from evosearch.tracking.client import connect, default_uri

SEARCH_ID = "5ea2c4" * 10 + "0000"
BATCHES = {
    split: ItemBatch(split, (ItemSet("copy", "tiny_copy", (0, 1), (f"{split}0", f"{split}1")),))
    for split in ("search", "validation", "test")
}


def recipe(weight: float) -> dict[str, object]:
    return {"merge_method": "linear", "models": [{"model": "zoo:tiny/base", "parameters": {"weight": weight}}]}


def card(fitness: float, split: str = "search") -> ScoreCard:
    items = BATCHES[split].sets[0]
    return ScoreCard(
        split=split,
        batch_digest=BATCHES[split].digest,
        columns={"copy": {"acc": np.array([1.0, 0.0])}},
        set_digests={"copy": items.digest},
        tasks={"copy": TaskScore("acc,none", 0.5, 0.25, 2)},
        score=10.0 * fitness,
        fitness=Estimate(fitness, 0.1, 2),
        tokens=Tokens(30, 3, 20, 50),
        seconds={"materialize": 0.1, "score": 0.2},
    )


class Story:
    """A ledger with the events of a search, written step by step."""

    search_id = SEARCH_ID
    recipe = staticmethod(recipe)

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.ledger = Ledger.open(self.url)
        for batch in BATCHES.values():
            self.ledger.put_item_sets(batch)

    def add(self, type_: str, **payload: object) -> None:
        self.ledger.append(SEARCH_ID, [(type_, payload)])

    def scored(self, candidate: str, fitness: float, split: str = "search") -> None:
        made = card(fitness, split)
        payload = {"candidate": candidate, "recipe_id": f"id{candidate}", "worker": "w0"} | made.summary()
        self.ledger.append(SEARCH_ID, [("scored", payload)], scores=[(candidate, made)])

    def asked(self, index: int, duplicate_of: str | None = None) -> None:
        weight = 0.1 * index
        name = duplicate_of or str(index)
        self.add(
            "asked",
            candidate=str(index),
            group=index // 3,
            genome={"models[0], weight": weight},
            recipe=recipe(weight),
            recipe_id=f"id{name}",
            duplicate_of=duplicate_of,
        )

    def begin(self) -> None:
        spec = {"name": "night", "recipe": recipe(1.0)}
        self.add("started", name="night", spec=spec, inputs={"zoo:tiny/base": "ab"}, versions={"torch": "2.13"})
        self.add("baseline", candidate="base", name="base", kind="base", recipe=recipe(1.0), recipe_id="idbase")
        self.add("baseline", candidate="uniform", name="uniform", kind="uniform", skipped="there is only one parent")
        self.scored("base", 1.0)

    def first_group(self) -> None:
        for index in range(3):
            self.asked(index)
        self.scored("2", 4.0)  # they finish in another order than proposed
        fault = {"candidate": "1", "split": "search", "traceback": "Traceback: lost"}
        self.add("retried", stage="worker", reason="worker 3 died", **fault)
        self.scored("0", 2.0)
        self.add("failed", stage="materialize", reason="not finite", **fault)

    def second_group(self) -> None:
        self.asked(3, duplicate_of="2")
        self.asked(4)
        self.scored("4", 3.0)

    def finish(self) -> None:
        self.scored("2", 3.5, "validation")
        self.add("finalist", candidate="2", rank=1, score=35.0)
        self.add("test_opened", digest="d" * 64, candidates=["2", "base"], count=1)
        for candidate, fitness in (("2", 3.0), ("base", 1.0), ("champion", 2.0)):
            self.scored(candidate, fitness, "test")
        self.add(
            "gated", promoted="2", winner="2", reasons=["2 beats every comparator."], comparisons=[], unverified=False
        )
        self.add("promoted", candidate="2", registered_as="night", version="1")
        self.add("stopped", reason="candidates")

    def all(self) -> None:
        self.begin()
        self.first_group()
        self.second_group()
        self.finish()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path / "ledger.db")
    yield made
    made.ledger.close()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing else: building one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    connect(default_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def new_store(empty_store: Path, tmp_path: Path) -> Callable[[str], str]:
    """Name → URI of a fresh MLflow store."""

    def make(name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        return default_uri(folder)

    return make
