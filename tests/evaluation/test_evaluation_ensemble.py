"""The parents' ensemble on hand-made columns: averaged log-probabilities, recovered right answers, and errors."""

import numpy as np
import pytest

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.ensemble import ensemble_accuracy
from evosearch.evaluation.types import GOLD, LOGLIKELIHOODS, REQUESTS


def columns(items, golds):
    """The recorded columns of one model on multiple-choice items."""
    logprobs = [np.array(lls) - np.log(np.exp(lls).sum()) for lls in items]
    return {
        "acc": np.array([float(np.argmax(lls) == gold) for lls, gold in zip(items, golds, strict=True)]),
        LOGLIKELIHOODS: np.concatenate([np.array(lls, dtype=np.float64) for lls in items]),
        REQUESTS: np.array([len(lls) for lls in items], dtype=np.float64),
        GOLD: np.array([each[gold] for each, gold in zip(logprobs, golds, strict=True)]),
    }


def test_the_average_of_log_probabilities_decides():
    golds = [0, 1, 2]
    # Item 0: one confident member outvotes two unsure ones. Item 1: all wrong. Item 2: all right.
    one = columns([[0.0, -9.0], [0.0, -1.0], [-3.0, -2.0, -1.0]], golds)
    two = columns([[-1.0, 0.0], [0.0, -2.0], [-4.0, -3.0, -2.0]], golds)
    three = columns([[-1.5, 0.0], [0.0, -3.0], [-4.0, -3.0, -2.0]], golds)
    assert ensemble_accuracy("t", [one, two, three]).tolist() == [1.0, 0.0, 1.0]
    assert ensemble_accuracy("t", [two, three]).tolist() == [0.0, 0.0, 1.0]


def test_members_are_normalized_before_they_are_averaged():
    """Probability outside the choices lowers a member's raw log-likelihoods and must not change its weight."""
    one = columns([[-1.0, -1.5]], [0])
    two = columns([[-50.0, -49.8]], [0])
    assert ensemble_accuracy("t", [one, two]).tolist() == [1.0]  # 0.5 for the first, 0.2 for the second


def test_one_member_alone_is_as_accurate_as_it_was_recorded():
    draw = np.random.default_rng(0)
    golds = draw.integers(0, 4, size=50)
    for _ in range(3):
        member = columns(draw.normal(size=(50, 4)), golds)
        assert np.array_equal(ensemble_accuracy("t", [member]), member["acc"])


def test_equal_choices_count_as_lm_eval_counts_them_the_first_is_the_answer():
    for gold, right in ((0, 1.0), (1, 1.0)):  # the ledger does not show which of two equal choices is right
        member = columns([[-1.0, -1.0, -2.0]], [gold])
        assert ensemble_accuracy("t", [member]).tolist() == [right]
    # A second member distinguishes them.
    other = columns([[-1.0, -1.2, -2.0]], [1])
    assert ensemble_accuracy("t", [columns([[-1.0, -1.0, -2.0]], [1]), other]).tolist() == [0.0]


def test_tasks_without_choices_are_refused():
    generated = {"exact_match": np.ones(3), GOLD: -np.ones(3)}
    with pytest.raises(SuiteError, match=r"gsm: has no column loglikelihoods, .*multiple_choice"):
        ensemble_accuracy("gsm", [generated])
    single = {LOGLIKELIHOODS: -np.ones(3), REQUESTS: np.ones(3), GOLD: -np.ones(3)}
    with pytest.raises(SuiteError, match=r"lambada: has items with a single request"):
        ensemble_accuracy("lambada", [single])
    member = columns([[-1.0, -2.0]], [0])
    with pytest.raises(SuiteError, match=r"t: item 0: no choice matches the recorded gold log-probability"):
        ensemble_accuracy("t", [member | {GOLD: member[GOLD] - 0.1}])


def test_members_of_other_requests_are_refused():
    one, two = columns([[-1.0, -2.0], [0.0, -1.0]], [0, 0]), columns([[-1.0, -2.0, -3.0]], [0])
    with pytest.raises(SuiteError, match=r"t: the members were scored on different requests"):
        ensemble_accuracy("t", [one, two])
