"""Vocabulary of a merged model, and the sources of single tokens' embeddings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BeforeValidator, Field, model_validator

from evosearch.documents import Document
from evosearch.errors import RecipeError

UNION, BASE = "union", "base"


class FromModel(Document):
    """The embedding of one model's token, given by its text or its id."""

    kind: Literal["model_token"]
    """Always `model_token`."""
    model: Annotated[str, Field(min_length=1, max_length=4096)]
    """The model."""
    token: str | None = None
    """Text of the token."""
    token_id: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = None
    """Id of the token."""

    @model_validator(mode="after")
    def _one_name(self) -> "FromModel":
        if (self.token is None) == (self.token_id is None):
            raise ValueError("exactly one of token and token_id is required")
        return self


class Zero(Document):
    """An embedding of zeros."""

    kind: Literal["zero"]
    """Always `zero`."""


def _parse_source(raw: Any) -> Any:
    if raw is None or isinstance(raw, str | FromModel | Zero):
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected a model or a mapping with kind, got {raw!r}")
    kinds = {"model_token": FromModel, "zero": Zero}
    kind = kinds.get(str(raw.get("kind")))
    if kind is None:
        raise RecipeError("kind", f"got {raw.get('kind')!r}", f"One of: {', '.join(kinds)}")
    return kind(**{str(key): value for key, value in raw.items()})


def _none_is_empty(raw: Any) -> Any:
    return {} if raw is None else raw


class Token(Document):
    """Source of one token's embedding. With `force`, it replaces the embedding in models that have the token."""

    source: Annotated[str | FromModel | Zero | None, BeforeValidator(_parse_source)] = None
    """A model, whose embedding of this token is taken, another model's token, or zeros; default: a row of zeros."""
    force: Annotated[bool, Field(strict=True)] = False
    """Replace the embedding in models that have the token."""


class Tokenizer(Document):
    """The output's vocabulary: `union`, `base` or a model's, with single tokens, and rows padded to a multiple."""

    source: Annotated[str, Field(min_length=1, max_length=4096)] = UNION
    """`union`, `base` or a model."""
    tokens: Annotated[Mapping[str, Token], BeforeValidator(_none_is_empty)] = Field(default_factory=dict)
    """Token → source of its embedding."""
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1 << 16, strict=True)] | None = None
    """The number of rows is padded to a multiple of this."""

    def models(self) -> list[str]:
        """Return the models that single tokens' embeddings are taken from."""
        sources = [token.source for token in self.tokens.values()]
        return [source.model if isinstance(source, FromModel) else source for source in sources if _is_model(source)]


def _is_model(source: str | FromModel | Zero | None) -> TypeGuard[str | FromModel]:
    return isinstance(source, str | FromModel)
