"""Freezing of requests: lm-eval builds and tokenizes them once per suite and tokenizer. Rejects unsupported ones."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from evosearch.documents import join
from evosearch.errors import CheckpointError, InputError, SuiteError, did_you_mean
from evosearch.evaluation.engine.generation_plan import Decoder
from evosearch.evaluation.harness.answer_key import AskedDocument, answer_key, exercise_of
from evosearch.evaluation.harness.divergence import Exercise
from evosearch.evaluation.harness.fewshot import seed_of, without
from evosearch.evaluation.harness.frozen import FrozenBatch, FrozenDocument, FrozenTask, Query
from evosearch.evaluation.harness.gold import check_choices
from evosearch.evaluation.harness.requests import Requests
from evosearch.evaluation.harness.unlabelled import without_answer
from evosearch.evaluation.suites.loaded_task import LoadedTask
from evosearch.evaluation.suites.tasks import wrap_errors
from evosearch.evaluation.types import FitnessKind, ItemBatch, ItemSet


class Freezer:
    """Builder of frozen batches.

    Args:
        recorder: An `lm_adapter.RequestRecorder`.
        fitness: Kind of fitness; `score` needs no right answers, and makes no requests for them.

    Raises:
        CheckpointError: The tokenizer has no end-of-sequence token.
    """

    def __init__(self, recorder: Any, fitness: FitnessKind) -> None:
        if recorder.tokenizer.eos_token_id is None:
            raise CheckpointError("tokenizer", "has no end-of-sequence token", next="Set its eos_token")
        self._recorder, self._fitness = recorder, fitness
        self._requests = Requests(recorder)
        self._tasks: list[FrozenTask] = []

    def add(self, loaded: LoadedTask, items: ItemSet, answers: bool = True) -> None:
        """Build and tokenize the requests of one item set.

        Args:
            loaded: The task.
            items: The items.
            answers: Whether right answers may be read. Without them the items have a fitness by teachers, and no score.

        Raises:
            SuiteError: A document cannot be frozen, or cannot be taught as the others are.
        """
        chat = self._chat(loaded)
        documents = [
            self._document(loaded, chat, doc_id, doc_hash, answers)
            for doc_id, doc_hash in zip(items.doc_ids, items.doc_hashes, strict=True)
        ]
        if self._fitness == "teachers":
            _check_exercises(loaded, items, documents)
        self._tasks.append(
            FrozenTask(loaded.spec, loaded.where, loaded.task, loaded.ensemble, tuple(documents), answers)
        )

    def freeze(self, batch: ItemBatch) -> FrozenBatch:
        """Return everything added so far as a frozen batch."""
        made, decoder = self._requests, Decoder(self._recorder.tokenizer)
        return FrozenBatch(
            batch, tuple(made.lls), tuple(made.generations), decoder, tuple(self._tasks), self._fitness, made
        )

    def prompt(self, loaded: LoadedTask, doc_id: int, doc_hash: str) -> tuple[int, ...]:
        """Return the tokens of a document's prompt, without its right answer; of a rolling request, of its text.

        Raises:
            SuiteError: lm-eval cannot build it.
            CheckpointError: The tokenizer or its chat template cannot be used.
        """
        document, where, chat = loaded.documents[doc_id], place_of(loaded, doc_id), self._chat(loaded)
        excluded = frozenset[int]().union(*loaded.excluded.get(doc_hash, ()))
        hidden = without_answer(loaded.task, document), without(loaded.task, excluded)
        with wrap_errors(where, "lm-eval cannot build its prompt"), hidden[0], hidden[1]:
            context, instances = _build(loaded, chat, document, doc_id, doc_hash)
        return tuple(self._recorder.tok_encode(context or instances[0].args[0]))

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
        self, loaded: LoadedTask, chat: Callable[..., str] | None, doc_id: int, doc_hash: str, answers: bool
    ) -> FrozenDocument:
        task, document = loaded.task, loaded.documents[doc_id]
        where = place_of(loaded, doc_id)
        try:
            excluded = frozenset[int]().union(*loaded.excluded.get(doc_hash, ()))
            with nullcontext() if answers else without_answer(task, document), without(task, excluded):
                check_choices(where, task, document, answers)
                context, instances = _build(loaded, chat, document, doc_id, doc_hash)
            generations = len(self._requests.generations)
            queries = tuple(self._query(where, instance) for instance in instances)
            right, exercise = None, None
            if not loaded.spec.report_only:
                requests = [query.requests for query in queries]
                asked = AskedDocument(loaded, where, document, context, instances, requests, chat is not None)
                if self._fitness == "teachers":
                    exercise = exercise_of(asked, self._requests)
                if answers:
                    kind = "score" if self._fitness == "teachers" else self._fitness
                    right = answer_key(kind, asked, self._requests)
                else:  # only its teacher continues the prompt
                    del self._requests.generations[generations:]
                    instances, queries = [], ()
        except InputError:
            raise
        except Exception as exc:  # a template, the task's own code, or an assertion of lm-eval
            raise SuiteError(where, f"lm-eval cannot build its requests: {type(exc).__name__}: {exc}") from exc
        return FrozenDocument(document, tuple(instances), queries, right, exercise)

    def _query(self, where: str, instance: Any) -> Query:
        """Freeze the requests of one lm-eval instance."""
        kind, args = instance.request_type, instance.args
        if kind == "generate_until":
            return Query(kind, (self._requests.generation(where, args[0], args[1]),))
        if kind == "loglikelihood":
            return Query(kind, (self._requests.loglikelihood(where, args[0], args[1]),))
        if kind == "loglikelihood_rolling":
            return Query(kind, self._requests.rolling(args[0]))
        raise SuiteError(where, f"makes a request of the unsupported type '{kind}'")


def place_of(loaded: LoadedTask, doc_id: int) -> str:
    """Return the place of a document, for errors."""
    return f"{join(loaded.where, 'task')}: document {doc_id} of '{loaded.name}'"


def _check_exercises(loaded: LoadedTask, items: ItemSet, documents: Sequence[FrozenDocument]) -> None:
    """Check that all documents ask their teacher for the same: a lesson has either texts or choices.

    Raises:
        SuiteError: A task that makes its own requests makes one for some documents and several for others.
    """
    first: tuple[int, Exercise] | None = None
    for doc_id, document in zip(items.doc_ids, documents, strict=True):
        if document.exercise is None:
            continue
        first = first or (doc_id, document.exercise)
        if document.exercise.kind != first[1].kind:
            what = f"asks its teacher for {document.exercise.kind}, and document {first[0]} for {first[1].kind}"
            next_step = "Set `report_only: true`, or divide the task"
            raise SuiteError(place_of(loaded, doc_id), what, "One kind of request in a task", next_step)


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
