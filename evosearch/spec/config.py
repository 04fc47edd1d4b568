"""Models of a search spec as it is written in YAML.

The attribute docstrings are the fields' descriptions in the JSON Schema and in the spec reference.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from evosearch.documents import Document
from evosearch.errors import SpecError
from evosearch.recipe.schema import MAX_MODELS
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.spec.credentials import Url
from evosearch.spec.own_names import free_name

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SearchName = Annotated[Name, AfterValidator(free_name)]  # also the name of a folder
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Evaluations = Annotated[int, Field(gt=0, le=10**9)]
Tokens = Annotated[int, Field(gt=0, le=100_000_000)]  # more than any device has memory for
SearchMinibatches = Annotated[int, Field(ge=2, le=100_000)]
Objectives = Annotated[tuple[Text, ...], Field(min_length=2, max_length=4)]
JSON_LINES_FILE = re.compile(r"jsonl:[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.jsonl")
ADDRESS = re.compile(r"auto|[^\s/:@]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")  # of a Ray cluster's head node


class BudgetConfig(Document):
    """When to stop proposing candidates: at the first of these limits. At least one of the first three is required."""

    candidates: Evaluations | None = None
    """Number of candidates."""
    hours: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Hours, over all runs of the search. A change of the date or time does not move this clock."""
    items: Annotated[int, Field(gt=0, le=10**12)] | None = None
    """Number of item evaluations of candidates; baselines do not count."""
    target: FiniteFloat | None = None
    """Stop once a candidate that violates no guard reaches this fitness."""
    patience: Evaluations | None = None
    """Stop after this many candidates in a row without an improvement."""

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.candidates is None and self.hours is None and self.items is None:
            raise ValueError("give candidates, hours or items: target and patience alone may never end a search")
        return self


class WorkersConfig(Document):
    """The workers that score candidates: on this machine or on a Ray cluster."""

    executor: Literal["ray", "local"] = "ray"
    """`ray` starts worker processes; `local` scores in the process of the search, one candidate at a time."""
    count: Annotated[int, Field(gt=0, le=10_000)] | Literal["auto"] = "auto"
    """Number of workers. `auto`: on this machine one per GPU, or one per two CPU cores; on a cluster as many as fit,
    following its nodes as they come and go."""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads of one worker, and the cores that it reserves."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1024)] | None = None
    """GPUs of one worker, 1 by default where there are any. Below 1, workers share a GPU; a whole number from 2 on
    spreads a model that is larger than one GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run."""
    batch_tokens: Tokens | None = None
    """Tokens of one forward pass. Default: 2048 on a CPU, measured on a GPU."""
    cached_tokens: Tokens | None = None
    """Tokens whose keys and values are kept while answers are generated. Default: 32768."""
    address: Url | None = None
    """A Ray cluster: HOST:PORT of its head node, or `auto` for the cluster that this machine is a node of.

    It is joined if the environment names it too, by RAY_ADDRESS or EVOSEARCH_HOSTS (ray://HOST:PORT).
    """
    price_per_hour: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Price of one worker's hour in any currency, for the estimate of `evosearch check`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse keys that the chosen executor or device would ignore."""
        if self.executor == "local":
            for key, given in (("address", self.address), ("gpus_per_worker", self.gpus_per_worker)):
                if given is not None:
                    raise SpecError(key, "is only valid with executor: ray", next="Remove it, or the executor line")
            if self.count not in ("auto", 1):
                raise SpecError("count", f"got {self.count}", "executor: local has one worker", "Use executor: ray")
        if self.gpus_per_worker is not None and self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            allowed = "A fraction up to 1 (workers share a GPU), or a whole number (a model is spread over its GPUs)"
            raise SpecError("gpus_per_worker", f"got {self.gpus_per_worker:g}", allowed)
        if self.address is not None and not ADDRESS.fullmatch(self.address):
            next = "From a machine outside the cluster, use: evosearch submit SPEC --address http://HOST:8265"
            raise SpecError("address", f"got '{self.address}'", "HOST:PORT of the head node, or auto", next)
        if self.device == "cpu" and self.gpus_per_worker:
            raise SpecError("gpus_per_worker", f"got {self.gpus_per_worker:g} with device: cpu", "0", "Leave it out")
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise SpecError("gpus_per_worker", "got 0 with device: cuda", "More than 0", "Leave one of the two out")
        return self


class TrackingConfig(Document):
    """Tracking store that mirrors the search."""

    uri: Url | None = None
    """MLflow tracking URI; default: a SQLite file in the runs folder. `jsonl:NAME.jsonl` writes JSON lines to a file of
    that name in the run directory instead."""
    experiment: Text | None = None
    """MLflow experiment; default: the spec's name."""
    documents: bool = True
    """Show the documents of the test split, with the models' answers, in MLflow's comparisons of the winner with each
    model. False leaves them out, for documents that not everyone who uses the store may read."""

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        """Refuse files of JSON lines that could be files of another kind, and MLflow's keys next to them."""
        if (self.uri or "").startswith("jsonl:") and not JSON_LINES_FILE.fullmatch(self.uri or ""):
            allowed = "jsonl:NAME.jsonl, a file in the run directory"
            raise SpecError("uri", f"got '{self.uri}'", allowed, "For example jsonl:events.jsonl")
        if self.experiment is not None and (self.uri or "").startswith("jsonl:"):
            raise SpecError("experiment", "JSON lines have no experiments", "An MLflow uri", "Remove one of the two")
        return self


class BaselinesConfig(Document):
    """Models that the winner must beat, in addition to those that follow from the recipe."""

    scales: Annotated[tuple[Annotated[float, Field(ge=-100, le=100)], ...], Field(max_length=100)] | None = None
    """Scales of the task-arithmetic scale sweep. Default: ten from 0.2 to 1.2; five or three of them if ten would take
    more than a third of the item evaluations that the budget allows for candidates."""
    base_model: Text | None = None
    """Base of the baselines where the recipe has none."""
    models: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    """Models of the uniform average and of the scale sweep; each is also a parent baseline."""
    trained: bool = False
    """Also fine-tune the best single scale's merge on the search documents, with as many item evaluations as the search
    used. It is tested beside the winner, and never promoted."""
    placebo: bool = False
    """Also run the same search over random task vectors with the norms of the models' own. Its winner is a baseline
    that the search must beat."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        named = [f"{scale:.2f}" for scale in self.scales or ()]
        if len(set(named)) < len(named):
            raise ValueError(f"two scales round to the same two decimals, which name them: {list(self.scales or ())}")
        return self


class PromotionConfig(Document):
    """How the winner is chosen and registered."""

    register_as: Name | None = None
    """Registered model name in MLflow; its version with the alias `champion` is the one to beat."""
    finalists: Annotated[int, Field(gt=0, le=10_000)] = 8
    """Number of candidates that are scored on the validation split."""
    mask_seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Number of seeds with which finalists that draw random masks (DARE, DELLA) are scored on the validation split,
    their own included. The scores are reported; nothing is chosen by those of other seeds."""
    checkpoint: bool = False
    """Also export the merged weights, and upload them with the registered version."""
    licences: Annotated[tuple[Text, ...], Field(min_length=1, max_length=100)] | None = None
    """Accepted licences, as hub ids (`apache-2.0`). A model whose card names another licence, or none, is refused."""


class SpecFile(Document):
    """A search spec of one search."""

    name: SearchName
    """Name of the search, of its run directory and of its MLflow experiment."""
    recipe: dict[str, Any]
    """A recipe in which search parameters replace values, such as `{low: 0.0, high: 1.0}`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its options."""
    suite: str
    """The evaluation suite, a YAML file; a relative path starts at the spec's own folder."""
    search_minibatches: SearchMinibatches | None = None
    """Number of disjoint minibatches of the search split. Generations are scored on them in rotation; the best
    candidates are rescored on the full split before finalists are chosen."""
    objectives: Objectives | None = None
    """Objectives of a multi-objective search in place of the fitness: `fitness`, `score`, `hops`, or task names.
    Finalists are still chosen by fitness."""
    budget: BudgetConfig
    """When to stop."""
    workers: WorkersConfig = WorkersConfig()
    """The workers that score candidates."""
    tracking: TrackingConfig = TrackingConfig()
    """Tracking store that mirrors the search."""
    ledger: Url | None = None
    """Database URL of the ledger, `sqlite:///FILE` or `postgresql://…`; default: a SQLite file in the run directory."""
    baselines: BaselinesConfig = BaselinesConfig()
    """Models that the winner must beat, in addition to those that follow from the recipe."""
    promotion: PromotionConfig = PromotionConfig()
    """How the winner is chosen and registered."""
