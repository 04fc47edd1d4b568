"""Prompt tokens of one candidate on each split, counted before any model runs.

They depend on the tokenizer, the suite and the context length; weights only decide where generated answers end.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.reader import CONFIG
from evosearch.checkpoints.references import default_cache, resolve_settings, split
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.evaluation.engine.runs import depths, distinct_prefixes
from evosearch.evaluation.harness.frozen import FrozenBatch
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.types import SPLITS
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.forward import settings
from evosearch.search.progress import Watcher


@dataclass(frozen=True)
class SplitTokens:
    """Tokens of one candidate on one split.

    Attributes:
        items: Number of items.
        requested: Tokens of all requests: contexts with continuations, and prompts.
        distinct: Nodes of their prefix trees, each distinct prefix counted once: the least that must be run.
        generated_at_most: New tokens if every answer runs to its limit; equal prompts are continued once.
        attended: Sum over the distinct tokens of the positions that each attends to.
        attended_at_most: The same of the new tokens.
        prompts: Number of distinct prompts to continue.
        longest: Tokens of the longest prompt with its answer.
    """

    items: int
    requested: int
    distinct: int
    generated_at_most: int
    attended: int
    attended_at_most: int
    prompts: int
    longest: int

    def to_dict(self) -> dict[str, int]:
        """Plain data, as `check --json` prints it."""
        return asdict(self)


def count(frozen: FrozenBatch) -> SplitTokens:
    """Tokens of a frozen batch. Log-likelihoods and prompts run in separate passes and have separate prefix trees.

    Answers of teachers, which a candidate reads, and its own answers, which are read again for the probability of their
    conclusion, count at their limit.
    """
    inputs = [request.inputs for request in frozen.loglikelihoods]
    documents = [document.exercise for task in frozen.tasks for document in task.documents if document.exercise]
    read = [exercise.prompt for exercise in documents if exercise.prompt is not None]
    read += frozen.concluded
    inputs += [(*request.prompt, *(-1,) * (request.max_new_tokens - 1)) for request in read]
    prompts = [request.prompt for request in frozen.generations]
    answers = [(len(request.prompt), request.max_new_tokens) for request in set(frozen.generations)]
    return SplitTokens(
        items=len(frozen.batch),
        requested=sum(map(len, inputs)) + sum(map(len, prompts)),
        distinct=distinct_prefixes(inputs) + distinct_prefixes(prompts),
        generated_at_most=sum(new for _, new in answers),
        attended=depths(inputs) + depths(prompts),
        attended_at_most=sum(new * length + new * (new + 1) // 2 for length, new in answers),
        prompts=len(answers),
        longest=max((length + new for length, new in answers), default=0),
    )


def count_for(harness: Harness, model: str, watcher: Watcher) -> dict[str, SplitTokens]:
    """Split → tokens with a model's tokenizer and context length; its weights are not read.

    Args:
        harness: The suite.
        model: A reference; an adapter (after '+') is ignored.
        watcher: Shows what is being fetched.

    Raises:
        CheckpointError: There is no such model, or its config or tokenizer cannot be used.
        SuiteError: A request does not fit the context, or needs a chat template that the tokenizer does not have.
    """
    register_schemes()
    folder = resolve_settings(split(model)[0], default_cache(), watcher.preparing)
    return count_in(harness, folder)


def count_in(harness: Harness, folder: Path) -> dict[str, SplitTokens]:
    """Split → tokens with the config.json and the tokenizer in `folder`; see `count_for`."""
    tokenizer = load_tokenizer(folder)
    length = max_length_of(settings(read_json(folder / CONFIG), str(folder / CONFIG)), tokenizer)
    return {name: count(harness.freeze(harness.batch(name), tokenizer, length)) for name in SPLITS}
