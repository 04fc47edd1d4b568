"""First section: the outcome in one sentence with figures, the gate's reasons, and the disclosures."""

from evosearch.durations import duration
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.promotion.gate import Comparison, GateDecision
from evosearch.reporting.agreement import agreement_texts
from evosearch.reporting.answers_read import answers_read
from evosearch.reporting.columns import fitness_number
from evosearch.reporting.page.contents import Block, Bullets, Section, Text
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.figures import capital
from evosearch.reporting.report import candidate_counts


def verdict(facts: Facts) -> Section:
    """Return the section."""
    decision = facts.decision
    texts = [*decision.reasons, *decision.notes] if decision is not None else []
    if facts.state.test_openings:
        texts.append(opened(facts.board.test_openings))
    if facts.board.contamination_acknowledged:
        texts.append(CONTAMINATED)
    texts += [*map(capital, agreement_texts(facts.board.rank_correlation)), *answers_read(facts.state)]
    blocks: list[Block] = [Text(_sentence(facts)), Text(_work(facts))]
    blocks += [Bullets(tuple(texts))] if texts else []
    return Section("verdict", "Verdict", tuple(blocks))


def _sentence(facts: Facts) -> str:
    name, decision, state = facts.subject, facts.decision, facts.state
    if name is None:
        return f"No candidate of {state.name} has a score yet."
    reached = f"{facts.label(name)} {_score(facts, name)}"
    if decision is not None:
        return _judged(facts, decision, reached)
    if state.winner is not None:
        return f"The winner of this stage is {reached}; later stages build on it, and the gate judges the last one."
    end = f"The search stopped ({state.stopped}) before the gate" if state.stopped else "The search has not ended"
    return f"{end}: in the lead is {reached}."


def _judged(facts: Facts, decision: GateDecision, reached: str) -> str:
    if decision.unverified:
        return f"{'Promoted' if decision.promoted else 'Chosen'} without a test: {reached}."
    own = [one for one in decision.comparisons if one.challenger == decision.winner]
    leads = [_lead(facts, one) for one in _nearest(own)]
    led = f"; it {' and '.join(leads)}" if leads else ""
    if decision.promoted is not None:
        return f"Promoted: {reached}{led}."
    short = [facts.label(one.comparator) for one in own if not one.beats]
    broken = [check.task for check in decision.guards if not check.holds]
    why = [f"is not clearly better than {', '.join(short)}"] if short else []
    why += [f"does not pass the guard on {', '.join(broken)}"] if broken else []
    return f"Nothing is promoted: {reached}{led}. It {' and '.join(why)}."


def _nearest(comparisons: list[Comparison]) -> list[Comparison]:
    """Return the comparison with the best parent, and the one with the best baseline."""
    parents = [one for one in comparisons if one.role == "parent"]
    best = sorted(parents, key=lambda one: one.difference)[:1]
    return best + [one for one in comparisons if one.role == "baseline"]


def _lead(facts: Facts, one: Comparison) -> str:
    """Return `leads the best parent (sort) by 5.0 points (95% interval +1.2 to +8.8)`."""
    verb = "leads" if one.difference >= 0 else "trails"
    name = facts.label(one.comparator).removeprefix("parent ")
    within = f"95% interval of the lead {one.lower:+.1f} to {one.upper:+.1f}"
    return f"{verb} the best {one.role} ({name}) by {abs(one.difference):.1f} points ({within})"


def _score(facts: Facts, name: str) -> str:
    card = facts.card(name, facts.split)
    if card is not None and card.score is not None:
        return f"with {card.score:.1f} points on the {facts.split} split"
    if card is not None:
        return f"with a fitness of {fitness_number(card.fitness.value)} on the {facts.split} split"
    return "scored on a minibatch alone"


def _work(facts: Facts) -> str:
    state = facts.state
    counts = candidate_counts(state, 0)
    optimizer = f" by {state.optimizer.name}" if state.optimizer is not None else ""
    failed = f", {counts.failed} failed" if counts.failed else ""
    took = f"{counts.proposed} candidates proposed{optimizer}, {counts.scored} evaluated{failed}"
    return f"{took}, in {duration(state.seconds_before)} of {state.sessions} session(s)."
