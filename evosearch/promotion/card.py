"""Model card of an exported checkpoint or adapter, as README.md: lineage, licences, scores, and how to rebuild it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch import documents
from evosearch.checkpoints.licence_families import family_of, licence_warnings, merged_licence
from evosearch.checkpoints.model_card import Card
from evosearch.merging.registry import specs
from evosearch.recipe.files import exists, pieces
from evosearch.recipe.provenance import Provenance, RecordedInterval
from evosearch.recipe.schema import Recipe
from evosearch.visible import visible

CARD_CHARACTERS = "`*<>[]|\\"  # that Markdown would act on
LOCAL = ("/", "~", "./", "../")  # start of references to folders
NOT_STATED = "not stated"
ROUTE_PAPER = "arXiv:2403.13187"
CITATION = """@software{evosearch,
  title  = {evosearch: search for merge recipes of language models, by evolution or by gradients},
  author = {{The evosearch developers}},
  version = {VERSION}
}"""


@dataclass(frozen=True)
class CardSource:
    """What a card is made from.

    Attributes:
        recipe: The recipe.
        text: The recipe's file with portable references, without comments and digests.
        provenance: Its section `provenance`.
        cards: Model or adapter, as the recipe names it → its card.
        commits: Hub id as the recipe names it → hub id with its commit.
        adapter_of: Reference of the model that an adapter is for; None for a checkpoint.
    """

    recipe: Recipe
    text: str
    provenance: Provenance
    cards: Mapping[str, Card]
    commits: Mapping[str, str]
    adapter_of: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """Model or adapter → the name to show: a hub id with its commit, or the last component of a path."""
        return {one: self.name(one) for one in self.cards}

    def name(self, reference: str) -> str:
        """Return the name to show of one model."""
        local = reference.startswith(LOCAL) or exists(reference)
        return self.commits.get(reference) or (Path(reference).name if local else reference)

    @property
    def method(self) -> tuple[str, str | None]:
        """Name of the merge method, and its paper."""
        if self.recipe.merge_method is None:
            return "a route through their layers", ROUTE_PAPER
        spec = specs().get(self.recipe.merge_method)
        return f"`{self.recipe.merge_method}`", spec.paper if spec else None


def card_text(source: CardSource) -> str:
    """Return the card as Markdown with the hub's front matter."""
    found = source.provenance
    licences = {source.names[one]: card.licences for one, card in source.cards.items()}
    kind = "LoRA adapter" if source.adapter_of else "model"
    parts = [
        f"# {_text(found.search)}-{_text(found.candidate).replace(':', '-')}",
        f"A {kind} merged from {_listed(source.names.values())} by {source.method[0]}, with a recipe found by "
        f"evosearch {found.evosearch} (candidate {_text(found.candidate)} of the search `{_text(found.search)}`, "
        f"{found.date}).",
        "## Models and licences",
        _models(source),
        *_licences(licences),
        "## Scores",
        *_scores(found),
        "## Use",
        _use(source),
        "## Rebuild and check",
        *_local(source),
        "`recipe.yaml` has the recipe, and digests of its models, of the merged weights and of the scored items:",
        "```console\n$ evosearch merge recipe.yaml OUTPUT_FOLDER\n$ evosearch verify recipe.yaml --scores\n```",
        f"weights_sha256 of the merge: `{found.weights_sha256}`. Seeds: {_pairs(found.seeds)}.",
        "## Recipe",
        f"```yaml\n{source.text}```",
        "## Cite",
        *_cite(source),
    ]
    return _front(source, licences) + "\n\n".join(parts) + "\n"


def _front(source: CardSource, licences: Mapping[str, Sequence[str]]) -> str:
    """Return the front matter, by which the hub lists the model."""
    licence = merged_licence(licences)
    bases = list(dict.fromkeys(name.partition("@")[0] for name in source.commits.values()))
    data: dict[str, Any] = {"license": licence or "other"}
    if licence is None:
        data["license_name"] = "terms-of-all-parents"
    data["library_name"] = "peft" if source.adapter_of else "transformers"
    data["pipeline_tag"] = "text-generation"
    data["tags"] = ["merge", "evosearch", *([source.recipe.merge_method] if source.recipe.merge_method else [])]
    if bases:
        data["base_model"] = bases
        data["base_model_relation"] = "adapter" if source.adapter_of else "merge"
    return f"---\n{documents.dump(data)}---\n\n"


def _models(source: CardSource) -> str:
    """Return a table of every parent, with its licence and the digest of its weights."""
    digests: dict[str, str | None] = {}  # of a model with an adapter, at the adapter
    for read in source.provenance.inputs:
        digests[pieces(read.model, exists)[-1]] = read.content_sha256
    adapters = {part for read in source.provenance.inputs for part in pieces(read.model, exists)[1:]}
    rows = ["| model | role | licence | family | content_sha256 |", "|---|---|---|---|---|"]
    base = source.recipe.base_model
    for one, card in source.cards.items():
        family = ", ".join(dict.fromkeys(map(family_of, card.licences))) or "unknown"
        role = "adapter" if one in adapters else "base" if one == base else "parent"
        digest = f"`{digests[one]}`" if digests.get(one) else "–"
        licence = _text(card.licence or NOT_STATED)
        rows.append(f"| {_text(source.name(one))} | {role} | {licence} | {family} | {digest} |")
    lineage = [
        f"- {_text(source.name(one))} is derived from {_listed(card.bases)}, according to its card."
        for one, card in source.cards.items()
        if card.bases
    ]
    return "\n".join(rows) + ("\n\nLineage:\n\n" + "\n".join(lineage) if lineage else "")


def _licences(licences: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the warnings on licences."""
    warnings = licence_warnings(licences)
    head = "Licences are those that the models' cards state; this is no legal advice."
    if not warnings:
        return [f"{head} No conflict is known between them."]
    return [f"{head} **Before you share or use the merge:**", "\n".join(f"- {_text(text)}" for text in warnings)]


def _scores(found: Provenance) -> list[str]:
    """Return a table of scores for every split: the merge, then the baselines from the best on."""
    if not found.scores or found.suite is None:
        return ["The model was not scored."]
    parts = [
        f"Suite `{_text(found.suite.name)}` (digest `{found.suite.digest}`). Scores are points: 0 at chance level, "
        "100 at best, with 95% intervals."
    ]
    for split, score in found.scores.items():
        rows = [f"| {split}, {score.n} items | score | 95% interval |", "|---|---:|---|", _row("**this merge**", score)]
        ranked = sorted(score.baselines.items(), key=lambda item: -item[1].value)
        rows += [_row(_text(name), one) for name, one in ranked]
        parts.append("\n".join(rows))
        each = [
            f"{_text(task)} {_text(one.metric)} {100 * one.value:.2f} ± {100 * one.stderr:.2f} ({one.n} items)"
            for task, one in score.tasks.items()
        ]
        parts.append(f"Metrics in % with standard errors: {'; '.join(each)}.")
    if "search" in found.scores:
        parts.append("The search split is what the search maximized, so that its scores are too high.")
    if found.test_openings:
        parts.append(f"The test set has been opened {found.test_openings} time(s) on record, by all searches.")
    parts += [_text(text) for text in found.statements]
    commands = [command for score in found.scores.values() for command in score.lm_eval]
    return [*parts, *(["The recipe's file has the commands of lm-eval that repeat the metrics."] if commands else [])]


def _row(name: str, one: RecordedInterval) -> str:
    return f"| {name} | {one.value:.2f} | {one.lower:.2f} to {one.upper:.2f} |"


def _use(source: CardSource) -> str:
    if source.adapter_of is None:
        return (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER_OR_ID")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER_OR_ID")\n```'
        )
    base = source.name(source.adapter_of)
    return (
        "The adapter approximates the merge: the scores are those of the merge itself.\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{_text(base.partition("@")[0])}")\n'
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER_OR_ID")\n```'
    )


def _local(source: CardSource) -> list[str]:
    """Return a note on models that only the author has."""
    names = [source.name(one) for one in source.cards if one.startswith(LOCAL) or exists(one)]
    if not names:
        return []
    return [f"These models were folders, and are needed at the paths that the recipe names: {_listed(names)}."]


def _cite(source: CardSource) -> list[str]:
    title, paper = source.method
    method = [f"The merge method is {title}: {paper}."] if paper else []
    text = CITATION.replace("VERSION", source.provenance.evosearch)
    return [*method, "Cite the models above as their cards ask, and evosearch:", f"```bibtex\n{text}\n```"]


def _pairs(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _listed(names: Any) -> str:
    return ", ".join(_text(name) for name in dict.fromkeys(names)) or "nothing"


def _text(text: str) -> str:
    """Return text of a file or a card in one line, without what Markdown or a terminal would act on."""
    plain = " ".join(visible(text).split())
    return "".join(f"\\{one}" if one in CARD_CHARACTERS else one for one in plain)
