"""The recipe: a declarative, complete description of one merged model.

It is mergekit's YAML, plus `seed` and `routing`. A recipe is checked twice: here for its form, which needs nothing but
the file, and in `checks` for its sense, which needs the methods' specs. `blocks` brings its three ways of naming
models (`models`, `slices`, `modules`) into one form.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from evosearch import documents
from evosearch.documents import Document
from evosearch.errors import RecipeError
from evosearch.recipe.hops import Routing
from evosearch.recipe.parameters import Setting, parse_setting
from evosearch.recipe.tokens import BASE, UNION, Tokenizer

# What only tunes mergekit's memory, or nothing at all: read, reported as having no effect here, never hashed.
NO_EFFECT = frozenset({"int8_mask"})

Dtype = Literal["float32", "bfloat16", "float16"]
Reference = Annotated[str, Field(min_length=1, max_length=4096)]
Layer = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]


def _parse_parameters(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"a mapping of parameter names to values is expected, got {value!r}")
    return {str(name): parse_setting(setting, str(name)) for name, setting in value.items()}


Parameters = Annotated[Mapping[str, Setting], BeforeValidator(_parse_parameters)]


class Input(Document):
    """One parent of a merge, with its own parameters."""

    model: Reference
    parameters: Parameters = Field(default_factory=dict)


class Source(Document):
    """Some layers of one model, with their own parameters: layers first to last - 1."""

    model: Reference
    layer_range: tuple[Layer, Layer]
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some_layers(self) -> Self:
        first, end = self.layer_range
        if first >= end:
            raise ValueError(
                f"layer_range [{first}, {end}] holds no layer: it runs from the first up to before the last"
            )
        return self


class Slice(Document):
    """A run of the output's layers, merged of as many layers of each source."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    base_model: Reference | None = None
    parameters: Parameters = Field(default_factory=dict)
    residual_weight: float | None = None  # mergekit reads it and makes nothing of it; so do we, with a note

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = [source.layer_range[1] - source.layer_range[0] for source in self.sources]
        for index, length in enumerate(lengths):
            if length != lengths[0]:
                what = f"{length} layers, where the first source has {lengths[0]}"
                raise RecipeError(f"sources[{index}].layer_range", what, "As many layers from every source of a slice")
        return self


class Module(Document):
    """The merge of one module. A language model has one, called `default`."""

    models: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError("exactly one of models and slices is expected in a module")
        return self


class Recipe(Document):
    """One merged model.

    Exactly one of `merge_method` (parameter space) and `routing` (data-flow space) is given, and for a merge exactly
    one of `models`, `slices` and `modules`. `dtype` is the arithmetic's type and `out_dtype` the type the weights are
    rounded to, before they are scored and when they are written; both default to float32.
    """

    merge_method: str | None = None
    base_model: Reference | None = None
    models: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: Mapping[str, Module] = Field(default_factory=dict)
    parameters: Parameters = Field(default_factory=dict)
    routing: Routing | None = None
    dtype: Dtype = "float32"
    out_dtype: Dtype | None = None
    tokenizer_source: Reference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if (self.merge_method is None) == (self.routing is None):
            raise ValueError("exactly one of merge_method and routing is expected")
        forms = [name for name in ("models", "slices", "modules") if getattr(self, name)]
        if self.routing is None and not forms:
            raise ValueError("models is missing or empty: name at least one model to merge")
        if self.routing is not None and (forms or self.parameters):
            raise ValueError("models and parameters go with merge_method; a route names its models in its hops")
        if len(forms) > 1:
            raise RecipeError(forms[1], f"{forms[0]} are given, too", "Exactly one of models, slices and modules")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise RecipeError(
                "tokenizer_source", "tokenizer is given, too", "One of them", "Write it as tokenizer.source"
            )
        return self

    @property
    def output_dtype(self) -> str:
        return self.out_dtype or self.dtype

    @property
    def vocabulary(self) -> Tokenizer | None:
        """What the output's vocabulary is to be; None: the donor's as it is."""
        if self.tokenizer_source is not None:
            return Tokenizer(source=self.tokenizer_source)
        return self.tokenizer

    @property
    def tokenizer_model(self) -> str | None:
        """The model that is named for its tokenizer, which need not be merged; None: none is."""
        source = self.vocabulary.source if self.vocabulary is not None else BASE
        return None if source in (UNION, BASE) else source

    @property
    def parents(self) -> tuple[str, ...]:
        """The models that are merged or passed through, each once, the base of the whole not counted."""
        named = [model for model in _models(self) if model != self.base_model]
        return tuple(dict.fromkeys(named))

    def references(self) -> tuple[str, ...]:
        """Every model whose weights this recipe names, each once, the base first."""
        named = [self.base_model] if self.base_model else []
        named += _models(self)
        named += [part.base_model for _, part in self.named_slices() if part.base_model]
        named += self.vocabulary.models() if self.vocabulary is not None else []
        return tuple(dict.fromkeys(named))

    def named_slices(self) -> list[tuple[str, Slice]]:
        """Every slice and its key, as `modules.default.slices[0]`."""
        named = [(f"slices[{index}]", part) for index, part in enumerate(self.slices)]
        for name, module in self.modules.items():
            named += [(f"modules.{name}.slices[{index}]", part) for index, part in enumerate(module.slices)]
        return named

    def to_dict(self) -> dict[str, Any]:
        """The recipe as it is written: without what equals its default, in the order of a hand-written file."""
        written: dict[str, Any] = _tidy(self.model_dump(mode="json", exclude_defaults=True))
        return written

    def to_yaml(self) -> str:
        return documents.dump(self.to_dict())


def _models(recipe: Recipe) -> list[str]:
    named = [entry.model for entry in recipe.models]
    named += [entry.model for module in recipe.modules.values() for entry in module.models]
    named += [source.model for _, part in recipe.named_slices() for source in part.sources]
    return named + [hop.model for hop in recipe.routing.hops] if recipe.routing else named


def _tidy(node: Any) -> Any:
    """Without empty `parameters` and with `{value: …}` for an entry that every tensor matches."""
    if isinstance(node, Mapping):
        kept = {key: _tidy(value) for key, value in node.items()}
        if kept.keys() == {"filter", "value"} and kept["filter"] is None:
            del kept["filter"]
        return {key: value for key, value in kept.items() if key != "parameters" or value != {}}
    return [_tidy(item) for item in node] if isinstance(node, list | tuple) else node
