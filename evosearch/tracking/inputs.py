"""Inputs of a search as MLflow knows them: item sets and models, by digest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DIGEST = 36  # characters of a digest that MLflow accepts
CONTEXT = "mlflow.data.context"  # tag of an input: what it is used for


@dataclass(frozen=True)
class RunInput:
    """One input of a run.

    Attributes:
        name: Suite and split, or reference of a model.
        digest: Of the documents, or of the weights; MLflow gets the first 36 characters.
        context: `search`, `validation`, `test` or `model`.
        kind: Kind of the source.
        source: Where it is from.
        rows: Number of items; None for a model.
    """

    name: str
    digest: str
    context: str
    kind: str
    source: Mapping[str, str]
    rows: int | None = None


def models_of(payload: Mapping[str, Any]) -> list[RunInput]:
    """Return the models of a `started` event, with the digests of their weights."""
    inputs: Mapping[str, str] = payload.get("inputs", {})
    return [
        RunInput(name, sha, "model", "model", {"reference": name, "content_sha256": sha})
        for name, sha in inputs.items()
    ]


def items_of(suite: str, card: Mapping[str, Any]) -> RunInput:
    """Return the items that a card on a full split is about."""
    split, digest = str(card["split"]), str(card.get("batch", ""))
    rows = sum(int(task.get("n", 0)) for task in card["tasks"].values()) or int(card["fitness"].get("n", 0))
    return RunInput(
        f"{suite}/{split}", digest, split, "suite", {"suite": suite, "split": split, "digest": digest}, rows
    )


def log_inputs(client: Any, run_id: str, inputs: Sequence[RunInput]) -> None:
    """Log inputs of a run; those that it has already are left as they are.

    Args:
        client: MLflow's client.
        run_id: The run.
        inputs: The inputs.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = [
        DatasetInput(
            Dataset(
                name=one.name[:500],
                digest=one.digest[:DIGEST],
                source_type=one.kind,
                source=json.dumps(one.source, sort_keys=True),
                profile=None if one.rows is None else json.dumps({"num_rows": one.rows}),
            ),
            tags=[InputTag(CONTEXT, one.context)],
        )
        for one in inputs
    ]
    client.log_inputs(run_id, datasets=datasets)
