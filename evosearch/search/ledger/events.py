"""The events of a search: what the ledger holds, in order, and all that a search is rebuilt from.

An event has a type, a time and a payload of plain JSON data with a version. Replay reads `asked` and `told`, from the
last `restarted` on; everything else is the record that people and the mirror read, and unknown types are ignored.

| type | payload |
|---|---|
| started | name, spec, versions {package: version}, budget, resumed, and the circumstances (below) |
| baseline | candidate, name, recipe, recipe_id, skipped (a reason, where it does not apply) |
| asked | candidate, group, genome, recipe, recipe_id, duplicate_of, minibatch |
| scored | candidate, recipe_id, worker, minibatch, and the card's summary |
| failed | candidate, split, minibatch, stage, reason, traceback, worker |
| retried | candidate, split, minibatch, stage, reason, traceback |
| told | group, observations [{candidate, value, stderr, n, state, violations, objectives}] |
| finalist | candidate, rank, score on validation |
| winner | candidate, recipe, recipe_id, score on validation: what a stage found, which later stages build on |
| test_opened | digest, candidates, count |
| gated | promoted, winner, reasons, comparisons, guards |
| promoted | candidate, registered_as, version, exported |
| warm_started | search, search_id, start (a genome), known [{candidate, genome, and as in `told`}] |
| restarted | start (a genome), reason: a new optimizer takes over; replay reads only what comes after |
| stopped | reason |

The circumstances are what scores depend on and the spec does not hold: inputs {reference: content_sha256}, files
{reference: {config.json, tokenizer's files: sha256}}, suite (as read), tasks {task: {config key: digest}}, batches
{split: digest}, item_sets {split: {task: digest}}. A resume under others is refused; ledgers of earlier versions lack
some of them, and what they lack is not compared. Where models are recipes, `recipes` {reference: recipe} has them, and
those that they are made of; `inputs` says which they are.

`violations` are points beyond each guard, `objectives` [{value, stderr, n}] are there where there are several.

`minibatch` is there where candidates are scored on a minibatch of the search split (see sampling), `violations` and `guards`
where the suite has guards, in its order.

A candidate is named by a string: an asked one by its ask index (`"17"`), a baseline by what it is (`"uniform"`,
`"parent:1"`, `"scale:0.40"`).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

EventType = Literal[
    "started",
    "baseline",
    "asked",
    "scored",
    "failed",
    "retried",
    "told",
    "finalist",
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
PAYLOAD_VERSION = 1
CIRCUMSTANCES = ("inputs", "files", "suite", "tasks", "batches", "item_sets", "recipes")  # keys of `started`


@dataclass(frozen=True)
class Event:
    """One recorded event; `seq` counts from 1 within a search, `time` is seconds since the epoch."""

    seq: int
    time: float
    type: str
    payload: dict[str, Any]
