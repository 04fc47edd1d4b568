"""Rows of embeddings and heads in another vocabulary: a model's own rows, and rows borrowed from others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from evosearch.errors import RecipeError, did_you_mean
from evosearch.recipe.tokens import Token, Zero

Row = tuple[str, int]  # a model and a row of it
Load = Callable[[], torch.Tensor]
WHERE = "recipe.tokenizer.tokens"


@dataclass(frozen=True)
class ModelRows:
    """The vocabulary and embedding rows of one model.

    Attributes:
        ids: Token → row, for all tokens; rows from `rows` on have no embedding.
        rows: Number of rows of its embeddings.
    """

    ids: Mapping[str, int]
    rows: int

    def row(self, token: str) -> int | None:
        """Return the row of a token, or None if it has no embedding."""
        id = self.ids.get(token)
        return id if id is not None and id < self.rows else None


@dataclass(frozen=True)
class Layout:
    """The source of every row of the output.

    Attributes:
        size: Rows of the output, N, including padding.
        tokens: (N,) bool, whether a row is a token's; the others are the mean of the tokens' rows.
        own: Model → (N,) its own row, or -1 if the row is borrowed.
        lent: Model → (k,) rows of the output, and (k,) its rows that they are computed from.
        lenders: (N,) number of rows that a borrowed row is the mean of; 0 for a row of zeros.
        unknown: Tokens that no model has and that the recipe does not define.
    """

    size: int
    tokens: torch.Tensor
    own: Mapping[str, torch.Tensor]
    lent: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    lenders: torch.Tensor
    unknown: tuple[str, ...]

    def unchanged(self, model: str, rows: int) -> bool:
        """Return whether a model's rows do not change."""
        return rows == self.size and torch.equal(self.own[model], torch.arange(self.size))

    def make(self, model: str, loads: Mapping[str, Load], dtype: torch.dtype) -> torch.Tensor:
        """Convert a model's tensor to the output's vocabulary.

        Args:
            model: Reference of the model.
            loads: Model → loader of its tensor, (rows, *width).
            dtype: Type of the result; means are computed in float32 at least.

        Returns:
            (N, *width).
        """
        own, has = self.own[model], self.own[model] >= 0
        out = loads[model]().index_select(0, own.clamp(min=0)).to(dtype)
        out[~has] = 0
        lacking = self.tokens & ~has
        if lacking.any():
            out[lacking] = self._borrowed(lacking, loads, out)
        if not self.tokens.all():
            exact = torch.promote_types(dtype, torch.float32)
            out[~self.tokens] = (out.sum(dim=0, dtype=exact) / self.tokens.sum()).to(dtype)  # these rows are still zero
        return out

    def _borrowed(self, lacking: torch.Tensor, loads: Mapping[str, Load], out: torch.Tensor) -> torch.Tensor:
        """Return the mean over the lenders of each row that a model lacks: (lacking.sum(), *width)."""
        place = torch.cumsum(lacking, 0) - 1  # (N,) row of the output → row of the result
        exact = torch.promote_types(out.dtype, torch.float32)
        total = torch.zeros((int(lacking.sum()), *out.shape[1:]), dtype=exact)
        for lender, (targets, rows) in self.lent.items():
            wanted = lacking[targets]
            if wanted.any():
                total.index_add_(0, place[targets[wanted]], loads[lender]()[rows[wanted]].to(exact))
        count = self.lenders[lacking].clamp(min=1).view(-1, *(1 for _ in out.shape[1:]))
        return (total / count).to(out.dtype)


def lay_out(
    vocabulary: Mapping[int, str],
    models: Mapping[str, ModelRows],
    base: str | None,
    tokens: Mapping[str, Token],
    multiple: int | None = None,
) -> Layout:
    """Determine the source of every row.

    A model keeps its own row of a token unless the recipe forces another. A missing row comes from the recipe's source,
    or else from the base, or else is the mean over the models that have the token.

    Args:
        vocabulary: Id → token of the output, in order of ids.
        models: The merged models.
        base: The base among them.
        tokens: The recipe's sources of single tokens.
        multiple: Pad the number of rows to a multiple of this.

    Raises:
        RecipeError: The source of a token is a model that is not merged, or that lacks the token.
    """
    given = {token: _given(token, entry, models) for token, entry in tokens.items() if entry.source is not None}
    forced = {token for token, entry in tokens.items() if entry.force}
    size = max(vocabulary, default=-1) + 1
    size += -size % (multiple or 1)
    own = {model: [-1] * size for model in models}
    pairs: dict[str, tuple[list[int], list[int]]] = {model: ([], []) for model in models}
    lenders, unknown = [0] * size, []
    for id, token in vocabulary.items():
        rows = {model: row for model, holding in models.items() if (row := holding.row(token)) is not None}
        if token not in forced:
            for model, row in rows.items():
                own[model][id] = row
            if len(rows) == len(models):
                continue
        sources = given[token] if token in given else _usual(rows, base)
        if not sources and token not in given:
            unknown.append(token)
        lenders[id] = len(sources)
        for model, row in sources:
            pairs[model][0].append(id)
            pairs[model][1].append(row)
    listed = torch.zeros(size, dtype=torch.bool)
    listed[list(vocabulary)] = True
    lent = {model: (torch.tensor(ids), torch.tensor(rows)) for model, (ids, rows) in pairs.items() if ids}
    kept = {model: torch.tensor(rows) for model, rows in own.items()}
    return Layout(size, listed, kept, lent, torch.tensor(lenders), tuple(unknown))


def _usual(rows: Mapping[str, int], base: str | None) -> tuple[Row, ...]:
    """Return the base's row if it has one, or else those of all models that have one."""
    return ((base, rows[base]),) if base is not None and base in rows else tuple(rows.items())


def _given(token: str, entry: Token, models: Mapping[str, ModelRows]) -> tuple[Row, ...]:
    """Return the row that a recipe names for a token; empty for zeros."""
    source, where = entry.source, f"{WHERE}[{token!r}].source"
    if source is None or isinstance(source, Zero):
        return ()
    if isinstance(source, str):
        holding = _merged(source, models, where)
        return ((source, _row(token, source, holding, where)),)
    holding = _merged(source.model, models, f"{where}.model")
    if source.token is not None:
        return ((source.model, _row(source.token, source.model, holding, f"{where}.token")),)
    assert source.token_id is not None
    if source.token_id >= holding.rows:
        allowed = f"'{source.model}' has embeddings 0 to {holding.rows - 1}"
        raise RecipeError(f"{where}.token_id", f"got {source.token_id}", allowed)
    return ((source.model, source.token_id),)


def _merged(model: str, models: Mapping[str, ModelRows], where: str) -> ModelRows:
    if model not in models:
        what = f"'{model}' is not merged"
        raise RecipeError(where, what, f"Merged models: {', '.join(models)}", did_you_mean(model, models))
    return models[model]


def _row(token: str, model: str, holding: ModelRows, where: str) -> int:
    row = holding.row(token)
    if row is not None:
        return row
    what = f"'{model}' has no token {token!r}"
    if token in holding.ids:
        what = f"token {token!r} of '{model}' has id {holding.ids[token]}, but the model has {holding.rows} embeddings"
    next = f"Name another token: {{kind: model_token, model: {model}, token: ...}}"
    raise RecipeError(where, what, "The model must have an embedding of the token", next)
