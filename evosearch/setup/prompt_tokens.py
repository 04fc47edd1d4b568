"""What scoring one candidate takes in tokens, split by split, known before any model runs.

The tokenizer, the suite and the context length decide it; weights do not, save for where generated answers end.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from evosearch.checkpoints.reader import CONFIG, read_json
from evosearch.checkpoints.references import default_cache, resolve_settings, split
from evosearch.evaluation.engine.prefix_tree import depths, distinct_prefixes
from evosearch.evaluation.harness.frozen import FrozenBatch
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.types import SPLITS
from evosearch.execution.worker import load_tokenizer, register_schemes
from evosearch.materialize.forward import settings
from evosearch.search.progress import Watcher


@dataclass(frozen=True)
class SplitTokens:
    """The work that one split asks of each candidate."""

    items: int
    requested: int  # tokens of all requests, one by one: contexts with continuations, and prompts
    distinct: int  # nodes of their token tries: what is run at least, each distinct prefix once
    generated_at_most: int  # new tokens, where no answer ends before its limit; equal prompts are continued once
    attended: int  # positions that the distinct tokens see, each its own and those before it
    attended_at_most: int  # and those that the new tokens see
    prompts: int  # that are continued
    longest: int  # tokens of the longest of them with its answer

    def to_dict(self) -> dict[str, int]:
        """Plain data, as `check --json` prints it."""
        return asdict(self)


def count(frozen: FrozenBatch) -> SplitTokens:
    """The tokens of a frozen batch. Log-likelihoods and prompts make two tries, as they are run by two passes."""
    inputs = [request.inputs for request in frozen.loglikelihoods]
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
    """Split → its tokens under the tokenizer and the context length of a model, whose weights are not read.

    Args:
        model: a folder with config.json and tokenizer, or any other reference; what follows a '+' is left out.

    Raises:
        CheckpointError: there is no such model, or it has no usable config or tokenizer.
        SuiteError: a request cannot be run by a model of this context length, or needs a chat template it has not.
    """
    register_schemes()
    folder = resolve_settings(split(model)[0], default_cache(), watcher.preparing)
    return count_in(harness, folder)


def count_in(harness: Harness, folder: Path) -> dict[str, SplitTokens]:
    """The same, of a folder with config.json and tokenizer."""
    tokenizer = load_tokenizer(folder)
    length = max_length_of(settings(read_json(folder / CONFIG), str(folder / CONFIG)), tokenizer)
    return {name: count(harness.freeze(harness.batch(name), tokenizer, length)) for name in SPLITS}
