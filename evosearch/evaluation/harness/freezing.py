"""From documents to frozen requests: lm-eval builds and tokenizes them, once; what cannot be run is refused by name."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from evosearch.documents import join
from evosearch.errors import CheckpointError, SuiteError, did_you_mean
from evosearch.evaluation.engine.generation import Decoder, GenerationRequest, Stop
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.fewshot import without
from evosearch.evaluation.harness.frozen import Ask, FrozenBatch, FrozenDocument, FrozenTask, Gold
from evosearch.evaluation.harness.gold import gold_choice, gold_text
from evosearch.evaluation.suites.suite import PromptOptions, SuiteTask
from evosearch.evaluation.types import ItemBatch, ItemSet

# Generation arguments that change nothing where nothing is sampled, with the values that are greedy.
_GREEDY: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (0, 0.0),
    "num_beams": (1,),
    "num_return_sequences": (1,),
}
_SAMPLING = {"top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


@dataclass(frozen=True)
class LoadedTask:
    """An lm-eval task as the suite uses it."""

    spec: SuiteTask
    options: PromptOptions  # the suite's and the task's
    where: str  # `quickstart.yaml: tasks[1]`
    name: str  # lm-eval's name
    task: Any  # lm_eval.api.task.Task
    documents: tuple[Any, ...]  # by doc id
    hashes: tuple[str, ...]
    ensemble: Any  # lm_eval.api.filter.FilterEnsemble
    source: str = ""  # the dataset split of the documents, where it is not what lm-eval evaluates
    # Document hash → positions of the examples that it must not be shown, in sets that documents share.
    left_out: Mapping[str, Collection[frozenset[int]]] = field(default_factory=dict)


class Freezer:
    """Collects the requests of item sets.

    Args:
        recorder: an `lm_adapter.RequestRecorder`.
        gold_required: refuse documents that name no right answer, instead of giving them NaN; without it, what is
            generated has none.
    """

    def __init__(self, recorder: Any, gold_required: bool) -> None:
        if recorder.tokenizer.eos_token_id is None:
            raise CheckpointError("tokenizer", "it has no end-of-sequence token", next="Set its eos_token")
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
        """All that was added."""
        decoder = Decoder(self._recorder.tokenizer)
        return FrozenBatch(batch, tuple(self._lls), tuple(self._generations), decoder, tuple(self._tasks))

    def _chat(self, loaded: LoadedTask) -> Callable[..., str] | None:
        """What puts a task's messages in the tokenizer's chat template, None where none is applied."""
        asked, known = loaded.options.apply_chat_template, self._recorder.templates()
        if not asked or loaded.task.OUTPUT_TYPE == "loglikelihood_rolling":  # which has no prompt
            return None
        where = f"{loaded.where}.apply_chat_template"
        if not known:
            next_step = "Set it to false, or take models whose tokenizer has one"
            raise SuiteError(where, "the tokenizer has no chat template", next=next_step)
        name = asked if isinstance(asked, str) else "default"
        if name not in known:
            what = f"the tokenizer has no chat template '{name}'"
            raise SuiteError(where, what, f"Its templates: {', '.join(sorted(known))}", did_you_mean(name, known))
        chat: Callable[..., str] = self._recorder.chat(asked)
        return chat

    def _document(
        self, loaded: LoadedTask, chat: Callable[..., str] | None, doc_id: int, doc_hash: str
    ) -> FrozenDocument:
        task, document = loaded.task, loaded.documents[doc_id]
        where = f"{join(loaded.where, 'task')}: document {doc_id} of '{loaded.name}'"
        try:
            with without(task, frozenset[int]().union(*loaded.left_out.get(doc_hash, ()))):
                context, instances = _build(loaded, chat, document, doc_id, doc_hash)
            asks = tuple(self._ask(where, instance) for instance in instances)
            gold = None
            if not loaded.spec.report_only:
                gold = self._gold(where, task, document, context, asks, chat is not None)
        except SuiteError:
            raise
        except Exception as exc:  # a template, the task's own code, or an assertion of lm-eval
            raise SuiteError(where, f"lm-eval cannot build its requests: {type(exc).__name__}: {exc}") from exc
        if gold is None and self._gold_required and not loaded.spec.report_only:
            raise SuiteError(where, "it names no right answer", next="Set `fitness: score`, or mend the task")
        return FrozenDocument(document, tuple(instances), asks, gold)

    def _ask(self, where: str, instance: Any) -> Ask:
        """The requests of one of lm-eval's instances."""
        kind, args = instance.request_type, instance.args
        if kind == "generate_until":
            return Ask(kind, (self._generation(where, args[0], args[1]),))
        if kind == "loglikelihood":
            return Ask(kind, (self._loglikelihood(where, args[0], args[1]),))
        if kind == "loglikelihood_rolling":
            return Ask(kind, tuple(self._put(*window) for window in self._recorder.windows(args[0])))
        raise SuiteError(where, f"it makes a request of the unknown kind '{kind}'")

    def _gold(
        self, where: str, task: Any, document: Any, context: Any, asks: tuple[Ask, ...], chat: bool
    ) -> Gold | None:
        if task.OUTPUT_TYPE == "generate_until":
            if not self._gold_required:
                return None  # it would be a request of its own, that nothing asks for
            text = gold_text(task, document, chat)
            if text is None:
                return None
            index = self._loglikelihood(where, context, text)
            return Gold(request=index, tokens=len(self._lls[index].targets))
        if task.OUTPUT_TYPE == "multiple_choice":
            choice = gold_choice(task, document)
            return None if choice is None else Gold(choice=choice, among=len(task.doc_to_choice(document)))
        if len(asks) != 1:
            return None  # a Python task with requests of its own: which is right, only its process_results knows
        (index,) = asks[0].requests
        return Gold(request=index, tokens=len(self._lls[index].targets))

    def _loglikelihood(self, where: str, context: str, continuation: str) -> int:
        """Index of the tokenized request.

        A model of context length M sees the last M tokens of context and continuation less the last one.
        """
        if continuation == "":
            raise SuiteError(where, "a continuation is empty: there is nothing to score")
        before, after = self._recorder.pair(context, continuation)
        limit = self._recorder.max_length
        if not before or not after:
            part = "context" if after else "continuation"
            raise SuiteError(where, f"the {part} {context if after else continuation!r} has no tokens")
        if len(after) > limit:
            raise SuiteError(where, f"a continuation has {len(after)} tokens; the model's context holds {limit}")
        return self._put(before, after)

    def _put(self, before: tuple[int, ...], after: tuple[int, ...]) -> int:
        inputs = (before + after)[-(self._recorder.max_length + 1) :][:-1]
        self._lls.append(LoglikelihoodRequest(inputs, after))
        return len(self._lls) - 1

    def _generation(self, where: str, context: str, gen_kwargs: dict[str, Any]) -> int:
        prompt = self._recorder.prompt(context, gen_kwargs)
        for name, value in prompt.kwargs.items():
            if name not in _SAMPLING and value not in _GREEDY.get(name, ()):
                what = f"generation_kwargs.{name} is {value!r}: only greedy decoding is scored"
                raise SuiteError(where, what, "do_sample: false, until, max_gen_toks")
        new = prompt.max_length - len(prompt.tokens)
        if new < 1 or not prompt.tokens:
            what = f"a prompt of {len(prompt.tokens)} tokens leaves room for {new}"
            raise SuiteError(where, what, next="Set max_gen_toks, and no max_length, in generation_kwargs")
        stops = tuple(Stop(text, self._recorder.token_count(text) + 2) for text in prompt.stops)
        self._generations.append(GenerationRequest(prompt.tokens, stops, new))
        return len(self._generations) - 1


def _build(
    loaded: LoadedTask, chat: Callable[..., str] | None, document: Any, doc_id: int, doc_hash: str
) -> tuple[Any, list[Any]]:
    """A document's context and lm-eval's instances, as `Task.build_all_requests` makes them.

    The few-shot draw has a seed of the document's own: what is scored beside it changes no examples.
    """
    task, options = loaded.task, loaded.options
    task.set_fewshot_seed(int(hashlib.sha256(doc_hash.encode()).hexdigest()[:8], 16))
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
