"""Accuracy of the ensemble of all parents, a reference for merges; to serve it, every parent must run. Pure numpy.

The ensemble answers with the choice whose log-probability, averaged over the members, is highest:
argmax_j 1/M Σ_m log p_m(j), where p_m is the softmax of member m's log-likelihoods over the choices. It is computed
from each member's recorded scores without running a model. Only multiple-choice tasks have choices to average over.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.types import GOLD, LOGLIKELIHOODS, REQUESTS, Column

TOLERANCE = 1e-6  # nats: largest difference between a recorded gold log-probability and that of its choice


def ensemble_accuracy(task: str, members: Sequence[Mapping[str, Column]]) -> Column:
    """Return (items,) 1.0 if the ensemble's answer is right, else 0.0; ties go to the first choice.

    Args:
        task: Name of the task, for errors.
        members: Recorded columns of each member, on the same items in the same order.

    Raises:
        SuiteError: The task is not multiple-choice, or the members were scored on different requests.
    """
    assert members
    choices = [_choices(task, columns) for columns in members]
    if len({tuple(len(lls) for lls in each) for each in choices}) != 1:
        raise SuiteError(task, "the members were scored on different requests", "The same item set for all")
    right = np.zeros(len(choices[0]))
    for item in range(right.size):
        logprobs = np.stack([_log_softmax(each[item]) for each in choices])  # (members, choices)
        golds = np.array([columns[GOLD][item] for columns in members])  # (members,)
        right[item] = float(logprobs.mean(axis=0).argmax() == _gold(task, item, logprobs, golds))
    return right


def _choices(task: str, columns: Mapping[str, Column]) -> list[Column]:
    """The log-likelihoods of each item's choices."""
    lacking = [name for name in (LOGLIKELIHOODS, REQUESTS, GOLD) if name not in columns]
    if lacking or columns[REQUESTS].min() < 2:
        what = f"has no column {lacking[0]}" if lacking else "has items with a single request"
        raise SuiteError(task, f"{what}, so there are no choices to average over", "A multiple_choice task")
    return np.split(columns[LOGLIKELIHOODS], columns[REQUESTS].astype(int).cumsum()[:-1])


def _gold(task: str, item: int, logprobs: Column, golds: Column) -> int:
    """Index of the right choice: the one whose log-probability equals every member's gold log-probability.

    The ledger does not record the index. If two choices match, they tie for every member, hence for the ensemble.
    """
    away = np.abs(logprobs - golds[:, None]).max(axis=0)  # (choices,)
    nearest = int(away.argmin())
    if not away[nearest] <= TOLERANCE:
        what = f"item {item}: no choice matches the recorded gold log-probability"
        raise SuiteError(task, what, "A multiple_choice task without unconditional requests")
    return nearest


def _log_softmax(lls: Column) -> Column:
    shifted = lls - lls.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float64)
