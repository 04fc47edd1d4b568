"""Tables of a recorded search for other programs: score cards, and the scores of every item.

One row of `score_cards` is one task of one model on one split; one row of `item_scores` is one item.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from evosearch.evaluation.types import LOGLIKELIHOODS, REQUESTS, SPLITS, Column, ItemSet
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.records import CardSummary
from evosearch.search.state import SearchState


def compared_models(state: SearchState) -> list[str]:
    """Return the models that people compare: winner, finalists, baselines and the registered champion.

    Candidates that were only scored on the search split are left out: their scores are metrics of their runs.
    """
    validated = dict.fromkeys(name for name, split in state.cards if split != SPLITS[0])
    winner = [state.gated.winner] if state.gated else []
    return list(dict.fromkeys([*winner, *validated, *state.baselines]))


def score_cards(state: SearchState, names: Iterable[str]) -> pd.DataFrame:
    """Return the score cards of some models, on full splits.

    Args:
        state: The search.
        names: Candidates and baselines.
    """
    rows = [
        {
            "model": name,
            "title": state.title(name),
            "split": card.split,
            "score": card.score,
            "score_stderr": card.score_stderr,
            "fitness": card.fitness.value,
            "fitness_stderr": card.fitness.stderr,
            "task": task,
            "metric": result.metric.removesuffix(",none"),
            "value": result.value,
            "stderr": result.stderr,
            "items": result.n,
        }
        for name, card in _cards(state, names)
        for task, result in card.tasks.items()
    ]
    return pd.DataFrame(rows)


def item_scores(ledger: Ledger, search_id: str, state: SearchState, names: Iterable[str]) -> pd.DataFrame:
    """Return the scores of every item, of some models on full splits.

    Columns: model, title, split, task, document (its position in the task), sha256 of the document, and the ledger's
    columns by name; `loglikelihoods` are those of an item's requests.

    Args:
        ledger: The ledger.
        search_id: The search.
        state: Its state.
        names: Candidates and baselines.

    Raises:
        LedgerError: Scores or item sets are damaged.
    """
    frames = []
    for name, card in _cards(state, names):
        stored = ledger.columns(search_id, name, card.split, card.sets)
        for task, columns in stored.items():
            about = {"model": name, "title": state.title(name), "split": card.split, "task": task}
            frames.append(_frame(about, ledger.item_set(card.sets[task]), columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _cards(state: SearchState, names: Iterable[str]) -> Iterator[tuple[str, CardSummary]]:
    found = ((name, split) for name in names for split in SPLITS)
    return ((name, state.cards[name, split]) for name, split in found if (name, split) in state.cards)


def _frame(about: Mapping[str, str], items: ItemSet, columns: Mapping[str, Column]) -> pd.DataFrame:
    values: dict[str, Any] = {"document": items.doc_ids, "sha256": items.doc_hashes}
    values |= {name: column for name, column in columns.items() if len(column) == len(items) and name != LOGLIKELIHOODS}
    if requests := by_item(columns):
        values[LOGLIKELIHOODS] = requests
    return pd.DataFrame({**{key: [value] * len(items) for key, value in about.items()}, **values})


def by_item(columns: Mapping[str, Column]) -> list[Column]:
    """Return the log-likelihoods of each item's requests; empty if the task has none."""
    if LOGLIKELIHOODS not in columns or REQUESTS not in columns:
        return []
    ends = np.cumsum(columns[REQUESTS]).astype(int)
    return np.split(columns[LOGLIKELIHOODS], ends[:-1])
