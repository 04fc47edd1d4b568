"""Recipe schema: a complete, declarative description of one merged model.

The format is mergekit's YAML, plus `seed` and `routing`. A recipe is checked twice: its form here, which needs only the
file, and its meaning in `checks`, which needs the methods' specs. `blocks` unifies the three keys that list models
(`models`, `slices`, `modules`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import RecipeError
from evosearch.recipe.hops import Routing
from evosearch.recipe.parameters import Setting, parse_setting
from evosearch.recipe.sample import Sample
from evosearch.recipe.tokens import BASE, UNION, Tokenizer

# Parameters that only tune mergekit's memory use: accepted, reported as without effect, and never hashed.
NO_EFFECT = frozenset({"int8_mask"})

MAX_MODELS = 1000  # models of a merge, and sources of a slice
MAX_SLICES = 10_000

Dtype = Literal["float32", "bfloat16", "float16"]
Reference = Annotated[str, Field(min_length=1, max_length=4096)]
Layer = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]


def _parse_parameters(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping of parameter names to values, got {value!r}")
    return {str(name): parse_setting(setting, str(name)) for name, setting in value.items()}


Parameters = Annotated[Mapping[str, Setting], BeforeValidator(_parse_parameters)]


class Input(Document):
    """One parent of a merge, with its own parameters."""

    model: Reference
    """The model: a folder, a hub id, `zoo:name`, or a recipe file."""
    parameters: Parameters = Field(default_factory=dict)
    """Parameters of the merge method for this model."""


class Source(Document):
    """A range of layers of one model, with its own parameters: from the first to the one before the last number."""

    model: Reference
    """The model: a folder, a hub id, `zoo:name`, or a recipe file."""
    layer_range: tuple[Layer, Layer]
    """First layer, and the layer after the last."""
    parameters: Parameters = Field(default_factory=dict)
    """Parameters of the merge method for this source."""

    @model_validator(mode="after")
    def _some_layers(self) -> Self:
        first, end = self.layer_range
        if first >= end:
            raise ValueError(
                f"layer_range [{first}, {end}] is empty: it starts at the first and ends before the second number"
            )
        return self


class Slice(Document):
    """A run of the output's layers, merged from as many layers of each source."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=MAX_MODELS)]
    """Layers of one or more models, as many of each."""
    base_model: Reference | None = None
    """Base of this slice, in place of the recipe's."""
    parameters: Parameters = Field(default_factory=dict)
    """Parameters of the merge method for this slice."""
    residual_weight: float | None = None
    """Accepted but unused, as in mergekit; `check` adds a note."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = [source.layer_range[1] - source.layer_range[0] for source in self.sources]
        for index, length in enumerate(lengths):
            if length != lengths[0]:
                what = f"{length} layers, but the first source has {lengths[0]}"
                raise RecipeError(
                    f"sources[{index}].layer_range", what, "All sources of a slice must have the same number of layers"
                )
        return self


class Module(Document):
    """The merge of one module. Language models have a single module, `default`."""

    models: Annotated[tuple[Input, ...], Field(max_length=MAX_MODELS)] = ()
    """The models to merge."""
    slices: Annotated[tuple[Slice, ...], Field(max_length=MAX_SLICES)] = ()
    """The slices to stack."""
    parameters: Parameters = Field(default_factory=dict)
    """Parameters of the merge method for this module."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError("a module needs exactly one of models and slices")
        return self


class Recipe(Document):
    """One merged model.

    A recipe has exactly one of `merge_method` (parameter space) and `routing` (data-flow space). A merge has exactly
    one of `models`, `slices` and `modules`. `dtype` is the type of the arithmetic. Weights are rounded to `out_dtype`,
    by default `dtype`, before they are scored or written.
    """

    merge_method: str | None = None
    """Name of the merge method."""
    base_model: Reference | None = None
    """Base model, from which methods compute task vectors."""
    models: Annotated[tuple[Input, ...], Field(max_length=MAX_MODELS)] = ()
    """The models to merge."""
    slices: Annotated[tuple[Slice, ...], Field(max_length=MAX_SLICES)] = ()
    """Slices to stack: each is a run of layers, merged from several models."""
    modules: Mapping[str, Module] = Field(default_factory=dict)
    """The module `default`, as another place for `models` or `slices`."""
    parameters: Parameters = Field(default_factory=dict)
    """Parameters of the merge method: numbers, gradients over depth, or `{filter, value}` entries."""
    routing: Routing | None = None
    """A route through the layers of one or more models."""
    sample: Sample | None = None
    """Texts that the method's statistics of the models are computed over; only for methods that need some."""
    dtype: Dtype = "float32"
    """Type of the arithmetic."""
    out_dtype: Dtype | None = None
    """Type that the weights are rounded to; default: `dtype`."""
    tokenizer_source: Reference | None = None
    """Short form of `tokenizer.source`."""
    tokenizer: Tokenizer | None = None
    """Vocabulary of the output; default: that of the model whose config it has."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """Chat template of the output: `auto`, a named template, or the template's text."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Seed of methods that sample."""

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if (self.merge_method is None) == (self.routing is None):
            raise ValueError("exactly one of merge_method and routing is required")
        forms = [name for name in ("models", "slices", "modules") if getattr(self, name)]
        if self.routing is None and not forms:
            raise ValueError("models is missing or empty: list at least one model to merge")
        if self.routing is not None and (forms or self.parameters):
            raise ValueError(
                "models and parameters are only valid with merge_method; a route names its models in its hops"
            )
        if len(forms) > 1:
            raise RecipeError(
                forms[1], f"not allowed together with {forms[0]}", "Exactly one of models, slices and modules"
            )
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise RecipeError(
                "tokenizer_source", "not allowed together with tokenizer", next="Write it as tokenizer.source"
            )
        return self

    @property
    def output_dtype(self) -> str:
        """Return the type that weights are rounded to."""
        return self.out_dtype or self.dtype

    @property
    def vocabulary(self) -> Tokenizer | None:
        """Return the output's vocabulary; None if the donor's is kept."""
        if self.tokenizer_source is not None:
            return Tokenizer(source=self.tokenizer_source)
        return self.tokenizer

    @property
    def tokenizer_model(self) -> str | None:
        """Return the model named as source of the tokenizer, which need not be merged; None without one."""
        source = self.vocabulary.source if self.vocabulary is not None else BASE
        return None if source in (UNION, BASE) else source

    @property
    def parents(self) -> tuple[str, ...]:
        """Return the models that are merged or routed through, without duplicates and without the recipe's base."""
        named = [model for model in _models(self) if model != self.base_model]
        return tuple(dict.fromkeys(named))

    def references(self) -> tuple[str, ...]:
        """Return every model whose weights the recipe uses, without duplicates, the base first."""
        named = [self.base_model] if self.base_model else []
        named += _models(self)
        named += [each.base_model for _, each in self.named_slices() if each.base_model]
        named += self.vocabulary.models() if self.vocabulary is not None else []
        return tuple(dict.fromkeys(named))

    def named_slices(self) -> list[tuple[str, Slice]]:
        """Return every slice with its key, such as `modules.default.slices[0]`."""
        named = [(f"slices[{index}]", each) for index, each in enumerate(self.slices)]
        for name, module in self.modules.items():
            named += [(f"modules.{name}.slices[{index}]", each) for index, each in enumerate(module.slices)]
        return named

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data without default values, in the order of a hand-written file."""
        written: dict[str, Any] = _tidy(self.model_dump(mode="json", exclude_defaults=True))
        return written

    def to_yaml(self) -> str:
        """Return the recipe as YAML."""
        return documents.dump(self.to_dict())


def _models(recipe: Recipe) -> list[str]:
    named = [entry.model for entry in recipe.models]
    named += [entry.model for module in recipe.modules.values() for entry in module.models]
    named += [source.model for _, each in recipe.named_slices() for source in each.sources]
    return named + [hop.model for hop in recipe.routing.hops] if recipe.routing else named


def _tidy(node: Any) -> Any:
    """Drop empty `parameters`, and the filter of entries that match every tensor."""
    if isinstance(node, Mapping):
        kept = {key: _tidy(value) for key, value in node.items()}
        if kept.keys() == {"filter", "value"} and kept["filter"] is None:
            del kept["filter"]
        return {key: value for key, value in kept.items() if key != "parameters" or value != {}}
    return [_tidy(item) for item in node] if isinstance(node, list | tuple) else node
