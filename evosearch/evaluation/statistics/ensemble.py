"""The parents asked together: a reference line for merges, at the price of running every parent. Pure numpy.

An ensemble answers with the choice whose log-probability, averaged over its members, is highest:
argmax_j 1/M Σ_m log p_m(j), with p_m the softmax of member m's log-likelihoods over the choices. It is read from what
was recorded when each member was scored; no model is run. Only multiple choice has choices to average over.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.types import GOLD, LOGLIKELIHOODS, REQUESTS, Column

TOLERANCE = 1e-6  # nats: how far a recorded gold log-probability may lie from the choice it belongs to


def ensemble_accuracy(task: str, members: Sequence[Mapping[str, Column]]) -> Column:
    """1.0 where the ensemble's answer is the right one, else 0.0: (items,). Of equal choices it takes the first.

    Args:
        task: what an error names.
        members: for each member its recorded columns of the task, on the same items in the same order.

    Raises:
        SuiteError: the task is not multiple choice, or the members were not scored on the same requests.
    """
    assert members
    choices = [_choices(task, columns) for columns in members]
    if len({tuple(len(lls) for lls in each) for each in choices}) != 1:
        raise SuiteError(task, "the members of the ensemble were not scored on the same requests", "One item set")
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
        what = f"lacks the column {lacking[0]}" if lacking else "has items of one request"
        raise SuiteError(task, f"{what}, so there are no choices to average over", "A task of type multiple_choice")
    return np.split(columns[LOGLIKELIHOODS], columns[REQUESTS].astype(int).cumsum()[:-1])


def _gold(task: str, item: int, logprobs: Column, golds: Column) -> int:
    """Which choice is the right one: that whose log-probability every member recorded as the gold one.

    The ledger does not hold its index. Where two choices fit, they are equal for every member, and so for the ensemble.
    """
    away = np.abs(logprobs - golds[:, None]).max(axis=0)  # (choices,)
    nearest = int(away.argmin())
    if not away[nearest] <= TOLERANCE:
        what = f"item {item}: no choice has the recorded gold log-probability"
        raise SuiteError(task, what, "A task of type multiple_choice without unconditional requests")
    return nearest


def _log_softmax(lls: Column) -> Column:
    shifted = lls - lls.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float64)
