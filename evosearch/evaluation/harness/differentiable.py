"""Check that a suite's fitness has a gradient in a model's weights."""

from evosearch.evaluation.harness.answer_key import LONG_ANSWER, regex_of
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.suites.suite import Suite


def differentiable(suite: Suite, harness: Harness | None = None) -> str | None:
    """Return why a suite's fitness has no gradient; None if it has.

    Args:
        suite: The suite.
        harness: The loaded suite; without it, tasks are not examined.
    """
    if suite.fitness == "score":
        return "fitness: score counts right answers, which has no derivative (expected_score has)"
    if harness is None or suite.fitness not in ("expected_score", "margin"):
        return None
    concluding = next((one.spec.name for one in harness.loaded if not one.spec.report_only and _concludes(one)), None)
    if concluding is None:
        return None
    return f"the fitness of '{concluding}' depends on the model's own generated text, which has no derivative"


def _concludes(loaded: LoadedTask) -> bool:
    """Whether right answers are conclusions of generated text; see `answer_key.py`."""
    if loaded.task.OUTPUT_TYPE != "generate_until" or regex_of(loaded.ensemble) is None:
        return False
    from lm_eval.models.utils import normalize_gen_kwargs

    room = normalize_gen_kwargs(dict(loaded.task.config.generation_kwargs or {}))["max_gen_toks"]
    return bool(room > LONG_ANSWER)
