"""Requests of a batch, tokenized as lm-eval does for a causal model. Rejects what the engine does not support."""

from collections.abc import Sequence
from typing import Any

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation_plan import GenerationRequest, Stop
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a context and of its continuation

# Generation arguments with the values that mean greedy decoding.
_GREEDY: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (0, 0.0),
    "num_beams": (1,),
    "num_return_sequences": (1,),
}
# Generation arguments without effect in greedy decoding.
_SAMPLING = {"top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


class Requests:
    """The requests made so far.

    Args:
        recorder: An `lm_adapter.RequestRecorder`.

    Attributes:
        lls: Log-likelihood requests.
        generations: Generation requests.
    """

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder
        self.lls: list[LoglikelihoodRequest] = []
        self.generations: list[GenerationRequest] = []

    @property
    def end_text(self) -> str:
        """Text of the end-of-sequence token."""
        return str(self._recorder.tokenizer.eos_token)

    def loglikelihood(self, where: str, context: str, continuation: str) -> int:
        """Add a request and return its index.

        With context length M, the model's input is the last M tokens of (context + continuation)[:-1].

        Raises:
            SuiteError: The request is empty or too long; `where` is the place to report.
        """
        return self._add(self.pair(where, context, continuation))

    def rolling(self, text: str) -> tuple[int, ...]:
        """Add the requests that score a complete text, and return their indices."""
        return tuple(self._add(window) for window in self._recorder.windows(text))

    def generation(self, where: str, context: str, gen_kwargs: dict[str, Any]) -> int:
        """Add a generation request and return its index.

        Raises:
            SuiteError: It is not greedy decoding, or the prompt leaves no room.
        """
        prompt = self._recorder.prompt(context, gen_kwargs)
        for name, value in prompt.kwargs.items():
            if name not in _SAMPLING and value not in _GREEDY.get(name, ()):
                what = f"generation_kwargs.{name} is {value!r}: only greedy decoding is supported"
                raise SuiteError(where, what, "do_sample: false, until, max_gen_toks")
        new = prompt.max_length - len(prompt.tokens)
        if new < 1 or not prompt.tokens:
            what = f"the prompt of {len(prompt.tokens)} tokens leaves {new} tokens for generation"
            raise SuiteError(where, what, next="Set max_gen_toks, not max_length, in generation_kwargs")
        stops = tuple(Stop(text, self._recorder.token_count(text) + 2) for text in prompt.stops)
        self.generations.append(GenerationRequest(prompt.tokens, stops, new))
        return len(self.generations) - 1

    def pair(self, where: str, context: str, continuation: str) -> Pair:
        """Tokenize context and continuation as lm-eval does.

        Raises:
            SuiteError: One of them has no tokens, or the continuation exceeds the context length.
        """
        before, after = self._tokens(where, context, continuation)
        limit = self._recorder.max_length
        if len(after) > limit:
            what = f"the continuation has {len(after)} tokens, but the model's context length is {limit}"
            raise SuiteError(where, what)
        return before, after

    def pair_within(self, most: int, where: str, context: str, continuation: str) -> Pair | None:
        """Return what `pair` does; None if the continuation has more than `most` tokens."""
        if len(self._tokens(where, context, continuation)[1]) > most:
            return None
        return self.pair(where, context, continuation)

    def _tokens(self, where: str, context: str, continuation: str) -> Pair:
        if continuation == "":
            raise SuiteError(where, "the continuation is empty, so there is nothing to score")
        before, after = self._recorder.pair(context, continuation)
        if not before or not after:
            empty = "context" if after else "continuation"
            raise SuiteError(where, f"the {empty} {context if after else continuation!r} has no tokens")
        return before, after

    def ended(self, pair: Pair) -> Pair:
        """Return a pair whose continuation is followed by the end-of-sequence token."""
        return pair[0], (*pair[1], self._recorder.tokenizer.eos_token_id)

    def request(self, pair: Pair) -> LoglikelihoodRequest:
        """Return the request of a pair, without adding it."""
        before, after = pair
        return LoglikelihoodRequest((before + after)[-(self._recorder.max_length + 1) :][:-1], after)

    def add_disjoint(self, pairs: Sequence[Pair]) -> tuple[int, ...]:
        """Add the requests of pairs that exclude one another, and return their indices."""
        return tuple(self._add(pair) for pair in disjoint(pairs))

    def _add(self, pair: Pair) -> int:
        self.lls.append(self.request(pair))
        return len(self.lls) - 1


def disjoint(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with distinct texts of which none begins with another: of such two, the shorter one.

    The probabilities of their continuations then add up, since at most one of them is generated.
    """
    found: dict[tuple[int, ...], Pair] = {}  # text → the first pair with it
    for pair in pairs:
        found.setdefault(pair[0] + pair[1], pair)
    lengths = {len(text) for text in found}
    return [
        pair
        for text, pair in found.items()
        if not any(length < len(text) and text[:length] in found for length in lengths)
    ]
