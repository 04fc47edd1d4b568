"""Freezing of requests: lm-eval builds and tokenizes them once per suite and tokenizer. Rejects unsupported ones."""

from collections.abc import Callable
from typing import Any

from evosearch.documents import join
from evosearch.errors import CheckpointError, SuiteError, did_you_mean
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest, Stop
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.fewshot import seed_of, without
from evosearch.evaluation.harness.frozen import FrozenBatch, FrozenDocument, FrozenTask, Gold, Query
from evosearch.evaluation.harness.gold import gold_choice, gold_text
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.types import ItemBatch, ItemSet

# Generation arguments with the values that mean greedy decoding.
_GREEDY: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (0, 0.0),
    "num_beams": (1,),
    "num_return_sequences": (1,),
}
# Generation arguments without effect in greedy decoding.
_SAMPLING = {"top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


class Freezer:
    """Builder of frozen batches.

    Args:
        recorder: An `lm_adapter.RequestRecorder`.
        gold_required: Reject documents without a right answer. If false, their gold log-probability is NaN, and
            generative tasks get no gold requests.

    Raises:
        CheckpointError: The tokenizer has no end-of-sequence token.
    """

    def __init__(self, recorder: Any, gold_required: bool) -> None:
        if recorder.tokenizer.eos_token_id is None:
            raise CheckpointError("tokenizer", "has no end-of-sequence token", next="Set its eos_token")
        self._recorder, self._gold_required = recorder, gold_required
        self._lls: list[LoglikelihoodRequest] = []
        self._generations: list[GenerationRequest] = []
        self._tasks: list[FrozenTask] = []

    def add(self, loaded: LoadedTask, items: ItemSet) -> None:
        """Build and tokenize the requests of one item set."""
        chat = self._chat(loaded)
        documents = [
            self._document(loaded, chat, doc_id, doc_hash)
            for doc_id, doc_hash in zip(items.doc_ids, items.doc_hashes, strict=True)
        ]
        self._tasks.append(FrozenTask(loaded.spec, loaded.where, loaded.task, loaded.ensemble, tuple(documents)))

    def freeze(self, batch: ItemBatch) -> FrozenBatch:
        """Return everything added so far as a frozen batch."""
        decoder = Decoder(self._recorder.tokenizer)
        return FrozenBatch(batch, tuple(self._lls), tuple(self._generations), decoder, tuple(self._tasks))

    def _chat(self, loaded: LoadedTask) -> Callable[..., str] | None:
        """Renderer of a task's messages with the tokenizer's chat template; None if no template is applied."""
        requested, known = loaded.options.apply_chat_template, self._recorder.templates()
        if not requested or loaded.task.OUTPUT_TYPE == "loglikelihood_rolling":  # rolling requests have no prompt
            return None
        where = f"{loaded.where}.apply_chat_template"
        if not known:
            next_step = "Set it to false, or use models whose tokenizer has one"
            raise SuiteError(where, "the tokenizer has no chat template", next=next_step)
        name = requested if isinstance(requested, str) else "default"
        if name not in known:
            what = f"the tokenizer has no chat template '{name}'"
            raise SuiteError(where, what, f"Its templates: {', '.join(sorted(known))}", did_you_mean(name, known))
        chat: Callable[..., str] = self._recorder.chat(requested)
        return chat

    def _document(
        self, loaded: LoadedTask, chat: Callable[..., str] | None, doc_id: int, doc_hash: str
    ) -> FrozenDocument:
        task, document = loaded.task, loaded.documents[doc_id]
        where = f"{join(loaded.where, 'task')}: document {doc_id} of '{loaded.name}'"
        try:
            with without(task, frozenset[int]().union(*loaded.excluded.get(doc_hash, ()))):
                context, instances = _build(loaded, chat, document, doc_id, doc_hash)
            queries = tuple(self._query(where, instance) for instance in instances)
            gold = None
            if not loaded.spec.report_only:
                gold = self._gold(where, task, document, context, queries, chat is not None)
        except SuiteError:
            raise
        except Exception as exc:  # a template, the task's own code, or an assertion of lm-eval
            raise SuiteError(where, f"lm-eval cannot build its requests: {type(exc).__name__}: {exc}") from exc
        if gold is None and self._gold_required and not loaded.spec.report_only:
            raise SuiteError(where, "has no right answer", next="Set `fitness: score`, or fix the task")
        return FrozenDocument(document, tuple(instances), queries, gold)

    def _query(self, where: str, instance: Any) -> Query:
        """Freeze the requests of one lm-eval instance."""
        kind, args = instance.request_type, instance.args
        if kind == "generate_until":
            return Query(kind, (self._generation(where, args[0], args[1]),))
        if kind == "loglikelihood":
            return Query(kind, (self._loglikelihood(where, args[0], args[1]),))
        if kind == "loglikelihood_rolling":
            return Query(kind, tuple(self._append(*window) for window in self._recorder.windows(args[0])))
        raise SuiteError(where, f"makes a request of the unsupported type '{kind}'")

    def _gold(
        self, where: str, task: Any, document: Any, context: Any, queries: tuple[Query, ...], chat: bool
    ) -> Gold | None:
        if task.OUTPUT_TYPE == "generate_until":
            if not self._gold_required:
                return None  # it would be an extra request that nothing uses
            text = gold_text(task, document, chat)
            if text is None:
                return None
            index = self._loglikelihood(where, context, text)
            return Gold(request=index, tokens=len(self._lls[index].targets))
        if task.OUTPUT_TYPE == "multiple_choice":
            choice = gold_choice(task, document)
            return None if choice is None else Gold(choice=choice, among=len(task.doc_to_choice(document)))
        if len(queries) != 1:
            return None  # a Python task with its own requests: only its process_results knows the right answer
        (index,) = queries[0].requests
        return Gold(request=index, tokens=len(self._lls[index].targets))

    def _loglikelihood(self, where: str, context: str, continuation: str) -> int:
        """Tokenize a request and return its index.

        With context length M, the model's input is the last M tokens of (context + continuation)[:-1].
        """
        if continuation == "":
            raise SuiteError(where, "the continuation is empty, so there is nothing to score")
        before, after = self._recorder.pair(context, continuation)
        limit = self._recorder.max_length
        if not before or not after:
            empty = "context" if after else "continuation"
            raise SuiteError(where, f"the {empty} {context if after else continuation!r} has no tokens")
        if len(after) > limit:
            what = f"the continuation has {len(after)} tokens, but the model's context length is {limit}"
            raise SuiteError(where, what)
        return self._append(before, after)

    def _append(self, before: tuple[int, ...], after: tuple[int, ...]) -> int:
        inputs = (before + after)[-(self._recorder.max_length + 1) :][:-1]
        self._lls.append(LoglikelihoodRequest(inputs, after))
        return len(self._lls) - 1

    def _generation(self, where: str, context: str, gen_kwargs: dict[str, Any]) -> int:
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
        self._generations.append(GenerationRequest(prompt.tokens, stops, new))
        return len(self._generations) - 1


def _build(
    loaded: LoadedTask, chat: Callable[..., str] | None, document: Any, doc_id: int, doc_hash: str
) -> tuple[Any, list[Any]]:
    """Build a document's context and lm-eval instances, as `Task.build_all_requests` does."""
    task, options = loaded.task, loaded.options
    task.set_fewshot_seed(seed_of(doc_hash))
    context = task.fewshot_context(
        document,
        num_fewshot=task.config.num_fewshot,
        system_instruction=options.system_instruction,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        chat_template=chat,
        gen_prefix=task.doc_to_prefix(document),
    )
    made = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(task.config.task, doc_id, task.config.repeats),
        apply_chat_template=chat is not None,
        chat_template=chat,
    )
    instances = made if isinstance(made, list) else [made]
    return context, sorted(instances, key=lambda instance: instance.idx)
