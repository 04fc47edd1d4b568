"""Right answers of a document, found by asking the task's own metric which answers it counts as right.

| output type | right answers |
|---|---|
| multiple_choice, several loglikelihood requests | choices for which the metric is 1 if they are by far the likeliest |
| loglikelihood, `exact_match` of a choice | the continuation: greedy decoding must give it |
| generate_until with a regex filter and room for reasoning | conclusions with metric 1, in the model's own text |
| generate_until, long | the first target, by its mean log-probability per token |
| generate_until, short | spellings of the targets with metric 1, each with its end |
| loglikelihood_rolling | none: such a task is report-only |

An answer ends by a stop string or by the end-of-sequence token; at the limit of `max_gen_toks`, or if the metric
ignores what follows (a filter takes the first match), it needs no end. Texts beyond that limit are never generated and
left out. More than LONG_ANSWER tokens are long, if `max_gen_toks` exceeds them too; then there is room for reasoning.

A document may have hundreds of targets, each with several spellings and ends. In the order of the targets, texts are
taken as long as they make at most MAX_TEXTS requests, about as many tokens as a prompt has. The probability of being
right is then a lower bound; the score, which is lm-eval's, counts every target.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation_plan import GenerationRequest
from evosearch.evaluation.harness.divergence import Exercise
from evosearch.evaluation.harness.gold import gold_choice, gold_text, spellings, targets
from evosearch.evaluation.harness.judge import Judge
from evosearch.evaluation.harness.requests import Pair, Requests, disjoint
from evosearch.evaluation.harness.right_answers import RightAnswer, RightChoice, RightConclusion, RightText
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.types import FitnessKind

LONG_ANSWER = 32  # tokens
MAX_ENDS = 8  # stop strings that are tried as ends of an answer
MAX_TEXTS = 64  # right texts of a document, counted with each of their ends
_TAILS = (" and", "\n\nQ: 0 A")  # texts after an answer; the metric ignores what follows if it ignores these
_UNLIKELY, _SURE = (-1e4, False), (0.0, True)  # (log-likelihood, greedy) of a wrong and of a right choice


@dataclass(frozen=True)
class AskedDocument:
    """A document with its requests, in one task's terms."""

    loaded: LoadedTask
    where: str  # for errors
    document: Any
    context: Any  # text of the prompt, or a list of them
    instances: Sequence[Any]  # lm_eval.api.instance.Instance
    requests: Sequence[tuple[int, ...]]  # requests of each instance
    chat: bool

    @property
    def judge(self) -> Judge:
        """The task's verdict on answers to this document."""
        loaded = self.loaded
        return Judge(loaded.task, loaded.ensemble, loaded.spec.metric, self.document, self.instances)

    def error(self, what: str) -> SuiteError:
        """An error with the fitness kinds that need no right answer."""
        return SuiteError(self.where, what, next="Set `fitness: score`, or fix the task")


def answer_key(kind: FitnessKind, asked: AskedDocument, requests: Requests) -> RightAnswer | None:
    """Return a document's right answers; with `fitness: score` only if they need no further requests.

    Raises:
        SuiteError: The document has no right answer, and the fitness needs one.
    """
    task = asked.loaded.task
    if task.OUTPUT_TYPE == "generate_until":
        return None if kind == "score" else _generated(kind, asked, requests)
    if task.OUTPUT_TYPE == "loglikelihood_rolling" or not asked.requests:
        return None
    if len(asked.requests) == 1:
        if kind in ("expected_score", "margin") and not asked.judge.right([_SURE]):
            raise asked.error(f"is not right by '{asked.loaded.spec.metric}' even if greedy decoding gives its target")
        return RightText(asked.requests[0])
    return _chosen(kind, asked)


def _chosen(kind: FitnessKind, asked: AskedDocument) -> RightAnswer | None:
    metric, count = asked.loaded.spec.metric, len(asked.requests)
    choices = _choices(asked)
    among = len(choices) if choices else count
    judge = asked.judge
    others = [_SURE] * (count - among)  # requests without the question
    right = tuple(
        j for j in range(among) if judge.right([_SURE if i == j else _UNLIKELY for i in range(among)] + others)
    )
    gold = gold_choice(asked.loaded.task, asked.document) if choices else (right[0] if right else None)
    none = gold is None if kind == "gold_logprob" and metric != "exact_match" else not right
    if none and kind != "score":
        raise asked.error("has no right answer")
    own = tuple(request for (request,) in asked.requests)
    if metric == "exact_match":  # of greedy decoding, whatever the other choices are
        return RightText(tuple(own[j] for j in sorted(right, key=lambda j: j != gold)))
    return replace(_unmarked(asked, normalized=kind in ("expected_score", "margin")), right=right, gold=gold)


def exercise_of(asked: AskedDocument, requests: Requests) -> Exercise:
    """Return what a document asks of a teacher, without its right answer.

    Raises:
        SuiteError: It has no single answer that a teacher could give.
    """
    generates = asked.loaded.task.OUTPUT_TYPE == "generate_until"
    if generates and len(asked.requests) == 1:
        return Exercise(prompt=requests.generations[asked.requests[0][0]])
    if generates or not asked.requests or any(len(own) != 1 for own in asked.requests):
        what = "has no single answer that a teacher could give"
        raise SuiteError(asked.where, what, next="Set `report_only: true`, or another `fitness`")
    if len(asked.requests) == 1 and asked.loaded.task.OUTPUT_TYPE != "multiple_choice":
        return Exercise(request=asked.requests[0][0])
    return Exercise(choice=_unmarked(asked))


def _unmarked(asked: AskedDocument, normalized: bool = True) -> RightChoice:
    """The choices of a document, none of which is marked as right, with the lengths that normalize them if needed."""
    choices, own = _choices(asked), tuple(request for (request,) in asked.requests)
    among = len(choices) if choices else len(own)
    without_question = own[among:] if asked.loaded.spec.metric == "acc_mutual_info" else ()
    return RightChoice(own[:among], (), None, _lengths(asked, choices) if normalized else (), without_question)


def _choices(asked: AskedDocument) -> list[str] | None:
    """The texts of the choices; None for a Python task that makes its own requests."""
    task = asked.loaded.task
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = [str(choice) for choice in task.doc_to_choice(asked.document)]
    return choices if len(asked.requests) in (len(choices), 2 * len(choices)) else None


def _lengths(asked: AskedDocument, choices: Sequence[str] | None) -> tuple[float, ...]:
    """Divisors of the choices' log-likelihoods, as lm-eval 0.4.13 normalizes them; empty if it does not."""
    metric = asked.loaded.spec.metric
    if metric not in ("acc_norm", "acc_bytes"):
        return ()
    if choices is None:
        what = f"makes its own requests, so the lengths by which '{metric}' divides are unknown"
        raise asked.error(what)
    return tuple(float(len(choice if metric == "acc_norm" else choice.encode())) for choice in choices)


def _generated(kind: FitnessKind, asked: AskedDocument, requests: Requests) -> RightAnswer:
    if len(asked.requests) != 1:
        raise asked.error("has several generated texts, so no text of its own is the right answer")
    task, document = asked.loaded.task, asked.document
    first = gold_text(task, document, asked.chat)
    if first is None:
        raise asked.error("has no right answer")
    if kind == "gold_logprob":
        return RightText((requests.loglikelihood(asked.where, asked.context, first),), per_token=True)
    generation = requests.generations[asked.requests[0][0]]
    conclusion = _conclusion(asked, generation)
    if conclusion is not None:
        return conclusion
    if asked.loaded.spec.language:
        what = "the probability of its right answer does not depend on the language of generated text"
        raise SuiteError(f"{asked.loaded.where}.language", what, next="Set `fitness: score`, or remove this key")
    room = generation.max_new_tokens > LONG_ANSWER
    if room and len(requests.pair(asked.where, asked.context, first)[1]) > LONG_ANSWER:
        return RightText((requests.loglikelihood(asked.where, asked.context, first),), per_token=True)
    return RightText(requests.add_disjoint(_short(asked, requests, generation)))


def _short(asked: AskedDocument, requests: Requests, generation: GenerationRequest) -> list[Pair]:
    """The right texts of a short answer, with their ends."""
    found, most, right = list[Pair](), generation.max_new_tokens, False
    for text in _spelled(asked, generation):
        right = True
        pair = requests.pair_within(most, asked.where, asked.context, text)
        if pair is None:
            continue
        more = disjoint([*found, *_ended(asked, requests, generation, text, pair)])
        if found and len(more) > MAX_TEXTS:
            break
        found = more
    if right and not found:
        raise asked.error(
            f"no right answer can be generated: all have more than {most} tokens, the limit (max_gen_toks)"
        )
    if not found:
        metric, name = asked.loaded.spec.metric, asked.loaded.ensemble.name
        first = targets(asked.loaded.task, asked.document)[0]
        raise asked.error(f"its target {first!r} is not right by '{metric}' with filter '{name}'")
    return found


def _spelled(asked: AskedDocument, generation: GenerationRequest) -> Iterator[str]:
    """Yield the spellings of the targets that are right, those of the first target first."""
    task, document = asked.loaded.task, asked.document
    spelled = (text for target in targets(task, document) for text in spellings(task, document, target, asked.chat))
    return (text for text in dict.fromkeys(spelled) if asked.judge.right([generation.cut(text)]))


def _ended(
    asked: AskedDocument, requests: Requests, generation: GenerationRequest, text: str, pair: Pair
) -> list[Pair]:
    """The ways to end a text within the limit of generation; the text itself if it needs no end."""
    most, judge = generation.max_new_tokens, asked.judge
    if len(pair[1]) == most or all(judge.right([generation.cut(text + tail)]) for tail in _TAILS):
        return [pair]
    ends = [stop.text for stop in generation.stops if stop.text not in ("", requests.end_text)][:MAX_ENDS]
    stopped = (requests.pair_within(most, asked.where, asked.context, text + end) for end in ends)
    return [*(one for one in stopped if one is not None), requests.ended(pair)]


def _conclusion(asked: AskedDocument, generation: GenerationRequest) -> RightConclusion | None:
    """The right conclusions of a generated text; None if the task's filters do not find any."""
    found = regex_of(asked.loaded.ensemble)
    if found is None or generation.max_new_tokens <= LONG_ANSWER:
        return None
    pattern, select = found
    cuts = ((target, cut_conclusion(target, pattern, select)) for target in targets(asked.loaded.task, asked.document))
    texts = dict.fromkeys(cut[1] if cut else target for target, cut in cuts)
    right = tuple(islice((text for text in texts if asked.judge.right_conclusion(text)), MAX_TEXTS))
    return RightConclusion(0, asked.context, pattern, select, right) if right else None


def regex_of(ensemble: Any) -> tuple[re.Pattern[str], int] | None:
    """Return the pattern and selection of a filter ensemble that first applies a regular expression, or None."""
    from lm_eval.filters.extraction import RegexFilter, WhitespaceFilter

    for make in ensemble.filters:
        one = make()
        if type(one) is RegexFilter:
            return one.regex, one.group_select
        if not isinstance(one, WhitespaceFilter):
            return None
    return None


def cut_conclusion(text: str, pattern: re.Pattern[str], select: int) -> tuple[int, str] | None:
    """Return where the conclusion of a text begins, and the conclusion, as lm-eval's regex filter finds it; or None."""
    matches = list(pattern.finditer(text))
    if not -len(matches) <= select < len(matches):
        return None
    match = matches[select]
    groups = [number for number in range(1, pattern.groups + 1) if match.group(number)] if pattern.groups else [0]
    if not groups or not match.group(groups[0]).strip():
        return None
    found = match.group(groups[0])
    return match.start(groups[0]) + len(found) - len(found.lstrip()), found.strip()
