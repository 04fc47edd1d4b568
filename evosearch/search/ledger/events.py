"""Events of a search: the content of the ledger, from which everything else is rebuilt.

An event has a type, a time and a payload of plain JSON data. Replay reads `asked`, `differentiated` and `told`, from
the last `restarted` on; all other events are for reports and for the tracking mirror. Types without a handler are
ignored.

| type | payload |
|---|---|
| started | name, spec, suite_file, optimizer {name, options, why}, versions, budget, resumed, circumstances |
| teachers | teachers {task: reference}, scores {task: {reference: metric on validation}} of those chosen by `auto` |
| baseline | candidate, kind, recipe, recipe_id, skipped (why it does not apply) |
| asked | candidate, group, genome, recipe, recipe_id, duplicate_of, minibatch, gradient |
| answered | as `asked`, without minibatch: a genome that the optimizer recommends at the end of a search |
| scored | candidate, recipe_id, worker, minibatch, and the card's summary |
| differentiated | candidate, split, minibatch, fitness, gradient [per dimension], tasks, tokens, seconds, worker |
| trained | candidate, form, parameters, rate, steps, kept, items, objective, seconds, worker |
| failed | candidate, split, minibatch, stage, reason, traceback, worker |
| retried | as `failed` |
| told | group, observations [{candidate, state, value, stderr, n, violations, objectives, gradient}] |
| finalist | candidate, rank, score on validation |
| reseeded | candidate, finalist, seed, recipe: a finalist with another seed of its masks, scored on validation |
| winner | candidate, recipe, recipe_id, score on validation: the result of a stage, which later stages build on |
| test_opened | digest, candidates, count |
| reread | digest, what: a test set was read outside a search |
| gated | finalist, winner, promoted, reasons, comparisons, guards, notes |
| promoted | candidate, recipe_id, registered_as, version, exported |
| warm_started | search, search_id, start (a genome), known [{genome, and the keys of an observation}] |
| restarted | start (a genome), reason: a new optimizer takes over; replay reads only what comes after |
| stopped | reason |

`records` has a dataclass for most of these payloads.

Each event has a time and a clock: the time of day is for readers, and only differences of clocks within a session are
durations.

The circumstances are everything outside the spec that scores depend on: inputs {reference: content_sha256}, files
{reference: {config.json, tokenizer's files: sha256}}, suite (as read), tasks {task: {config key: digest}}, batches
{split: digest}, item_sets {split: {task: digest}}, recipes {reference: recipe} of models that are recipes and of those
they are made of. A resume under other circumstances is refused.

`violations` are points beyond each guard, in the suite's order; `objectives` [{value, stderr, n}] is empty unless there
are several. `minibatch` is None for candidates that are scored on the full search split (see `sampling`). `gradient` of
an asked or told candidate is true if it is differentiated; the gradient itself is in `differentiated` alone. Answers
are scored on the full search split, and never told.

A candidate is named by a string: a proposed one by its ask index (`"17"`), a baseline by its kind (`"uniform"`,
`"parent:1"`, `"scale:0.40"`), a finalist with another seed by both (`"reseeded:17:1"`).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

EventType = Literal[
    "started",
    "teachers",
    "baseline",
    "asked",
    "answered",
    "scored",
    "differentiated",
    "trained",
    "failed",
    "retried",
    "told",
    "finalist",
    "reseeded",
    "winner",
    "test_opened",
    "reread",
    "gated",
    "promoted",
    "warm_started",
    "restarted",
    "stopped",
]
EVENT_TYPES: tuple[str, ...] = get_args(EventType)


@dataclass(frozen=True)
class Event:
    """One recorded event."""

    seq: int  # from 1 within a search, without gaps
    time: float  # seconds since the epoch
    type: str
    payload: dict[str, Any]
    clock: float = 0.0  # monotonic seconds of the process that wrote it; comparable within a session only
