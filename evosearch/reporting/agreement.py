"""Agreement of a search's fitness with the score, over all models scored on search and on validation."""

from evosearch.evaluation.statistics.rank_correlation import RankCorrelation, rank_correlation
from evosearch.search.state import SearchState


def agreement(state: SearchState) -> RankCorrelation | None:
    """Return the rank correlation of fitness (search) and score (validation); None before two models have both."""
    pairs = []
    for (name, split), card in state.cards.items():
        told = state.cards.get((name, "search"))
        if split == "validation" and told is not None and card.score is not None:
            pairs.append((told.fitness.value, card.score))
    if len(pairs) < 2:
        return None
    fitness, scores = zip(*pairs, strict=True)
    return rank_correlation(fitness, scores)


def agreement_texts(found: RankCorrelation | None) -> list[str]:
    """Return the correlation in words, and its warning if there is one."""
    return [] if found is None else [str(found), *filter(None, [found.warning])]
