"""Laws of tries cut into runs, over random sets of sequences."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from evosearch.evaluation.engine.prefix_tree import as_tree
from evosearch.evaluation.engine.runs import Layout, Run, Tokens, as_rows, by_length, distinct_prefixes

CACHED = 60


def random_sets(seed: int, count: int = 250) -> Iterator[tuple[list[Tokens], int]]:
    """Sets of sequences and a budget; few letters, so that many are shared, nested and repeated."""
    draw = random.Random(seed)
    for _ in range(count):
        letters = range(draw.choice((1, 2, 3, 30)))
        stems = [tuple(draw.choices(letters, k=draw.randint(0, 14))) for _ in range(draw.randint(1, 3))]
        made: list[Tokens] = []
        for _ in range(draw.randint(1, 22)):
            known = draw.choice([*stems, (), *made[-3:]])  # extend the last ones, for deep nesting
            made.append(known + tuple(draw.choices(letters, k=draw.randint(1, 9))))
        made += [one[: draw.randint(1, len(one))] for one in draw.sample(made, len(made) // 3)]  # prefixes of others
        yield made, draw.choice((1, 2, 3, 7, 20, 1000))


def nodes(sequences: Sequence[Tokens]) -> set[Tokens]:
    return {one[:end] for one in sequences for end in range(1, len(one) + 1)}


def owners(layout: Layout) -> dict[tuple[int, int], Tokens]:
    """(run, place) → the prefix computed there; checks every sequence on the way."""
    found: dict[tuple[int, int], Tokens] = {}
    for sequence, parts in layout.stretches.items():
        at = 0
        for number, part in enumerate(parts):
            run = layout.runs[part.run]
            assert part.first == run.prefix_tokens == at
            assert run.is_prefix or number == len(parts) - 1  # later stretches find their keys in the cache
            assert tuple(run.ids.ravel()[part.places]) == sequence[at : at + len(part.places)]
            assert run.positions.ravel()[part.places].tolist() == list(range(at, at + len(part.places)))
            for place in part.places:
                at += 1
                assert found.setdefault((part.run, int(place)), sequence[:at]) == sequence[:at]
        assert at == len(sequence)
    return found


def check_masks(layout: Layout) -> None:
    """Check that a node of a tree run sees exactly its ancestors, and a token of a row everything before it."""
    for sequence, parts in layout.stretches.items():
        for part in parts:
            run = layout.runs[part.run]
            if run.ends is None:
                starts = part.places // run.ids.shape[1]
                assert len(set(starts.tolist())) == 1
                assert (np.diff(part.places) == 1).all()
                assert run.is_prefix or part.places[0] == starts[0] * run.ids.shape[1], sequence
                continue
            width = run.ids.shape[1]
            order, row = np.arange(width), part.places[0] // width
            assert set((part.places // width).tolist()) == {row}
            path = part.places % width
            for depth, node in enumerate(path):
                seen = np.flatnonzero((order <= node) & (node < run.ends[row]))
                assert seen.tolist() == path[: depth + 1].tolist()


def check_stack(runs: Sequence[Run]) -> None:
    """Check that the order of runs is depth-first: each run's prefix is on the stack once deeper caches are dropped."""
    stack: list[int] = []
    for run in runs:
        while stack and stack[-1] > run.prefix_tokens:
            stack.pop()
        assert run.prefix_tokens == (stack[-1] if stack else 0)
        if run.is_prefix:
            stack.append(run.prefix_tokens + run.ids.shape[1])


def check_paths(layout: Layout) -> None:
    """Check that the caches on the stack at a sequence's run are that sequence's own prefix."""
    kept_by: dict[int, list[int]] = {}  # run → kept runs on the stack before it
    stack: list[tuple[int, int]] = []
    for index, run in enumerate(layout.runs):
        while stack and stack[-1][0] > run.prefix_tokens:
            stack.pop()
        kept_by[index] = [number for _, number in stack]
        if run.is_prefix:
            stack.append((run.prefix_tokens + run.ids.shape[1], index))
    for parts in layout.stretches.values():
        assert kept_by[parts[-1].run] == [part.run for part in parts[:-1]]


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_runs_every_node_and_hardly_any_twice(seed: int) -> None:
    for sequences, budget in random_sets(seed):
        layout = as_tree(sequences, budget)
        assert layout.stretches.keys() == set(sequences)
        found = owners(layout)
        assert set(found.values()) == nodes(sequences)
        distinct, run_at_all = distinct_prefixes(sequences), sum(run.tokens for run in layout.runs)
        assert distinct == len(nodes(sequences)) <= len(found) == run_at_all
        assert run_at_all + sum(run.padding for run in layout.runs) <= 1.05 * distinct
        assert run_at_all == distinct or distinct > 60  # in a small trie nothing runs twice
        assert all(run.tokens <= budget for run in layout.runs)
        check_masks(layout)
        check_stack(layout.runs)
        check_paths(layout)


@pytest.mark.parametrize("leaves", [1, 3, 64])
def test_with_leaves_every_sequence_ends_in_a_run_that_is_not_kept(leaves: int) -> None:
    for sequences, budget in random_sets(9, 400):
        layout = as_tree(sequences, budget, leaves)
        found = owners(layout)
        assert set(found.values()) == nodes(sequences)
        ending: dict[int, int] = {}
        for parts in layout.stretches.values():
            last = parts[-1]
            assert len(last.places) > 0
            assert not layout.runs[last.run].is_prefix
            ending[last.run] = ending.get(last.run, 0) + 1
        assert max(ending.values()) <= leaves
        assert set(ending) == {index for index, run in enumerate(layout.runs) if not run.is_prefix}
        assert all(run.tokens <= budget for run in layout.runs)
        # Only the last token of a sequence that is a prefix of others runs twice.
        again = sum(run.tokens for run in layout.runs) - distinct_prefixes(sequences)
        most = sum(any(len(o) > len(s) and o[: len(s)] == s for o in sequences) for s in set(sequences))
        assert 0 <= again <= most + 0.05 * distinct_prefixes(sequences)
        check_masks(layout)
        check_stack(layout.runs)
        check_paths(layout)


@pytest.mark.parametrize("seed", range(2))
def test_rows_share_the_kept_prefixes_and_nothing_else(seed: int) -> None:
    for sequences, budget in random_sets(20 + seed):
        tree = as_tree(sequences, budget)
        layout = as_rows(tree, budget, CACHED)
        assert layout.stretches.keys() == set(sequences)
        assert set(owners(layout).values()) == nodes(sequences)
        assert all(run.ends is None for run in layout.runs)
        assert [run.ids.tolist() for run in layout.runs if run.is_prefix] == [
            run.ids.tolist() for run in tree.runs if run.is_prefix
        ]
        for run in layout.runs:
            rows, width = run.ids.shape
            assert rows == 1 or (run.ids.size <= budget and rows * (run.prefix_tokens + width) <= CACHED)
            assert run.padding <= max(run.ids.size / 4, budget / 16)
        check_masks(layout)
        check_stack(layout.runs)
        check_paths(layout)


def test_by_length_runs_each_sequence_in_one_row_without_padding() -> None:
    for sequences, budget in random_sets(31):
        layout = by_length(sequences, budget)
        owners(layout)
        check_masks(layout)
        assert sum(run.tokens for run in layout.runs) == sum(map(len, set(sequences)))
        for run in layout.runs:
            assert (run.padding, run.prefix_tokens, run.is_prefix, run.ends) == (0, 0, False, None)
            assert run.ids.shape[0] == 1 or run.ids.size <= budget
        assert all(len(parts) == 1 for parts in layout.stretches.values())


def test_an_empty_set_has_no_runs() -> None:
    assert as_tree([], 10).runs == as_tree([], 10, 3).runs == ()
    assert (distinct_prefixes([]), by_length([], 10).runs, as_rows(as_tree([], 10), 10, 10).runs) == (0, (), ())


def test_order_and_repetition_of_the_sequences_do_not_matter() -> None:
    for sequences, budget in random_sets(40, 40):
        shuffled = sequences * 2
        random.Random(0).shuffle(shuffled)
        one, other = as_tree(sequences, budget), as_tree(shuffled, budget)
        assert [run.ids.tolist() for run in one.runs] == [run.ids.tolist() for run in other.runs]
        assert one.stretches.keys() == other.stretches.keys()


def test_few_shot_questions_are_one_kept_prefix_and_packed_subtrees() -> None:
    """The most common shape: examples run once, questions with four choices packed to the budget."""
    shots = tuple(range(100, 400))
    questions = [(*shots, *range(q, q + 9)) for q in range(0, 90, 9)]
    sequences = [(*question, choice, 7) for question in questions for choice in range(4)]
    layout = as_tree(sequences, 64)
    kept = [run for run in layout.runs if run.is_prefix]
    assert [run.tokens for run in kept] == [64, 64, 64, 64, 44]
    assert [run.prefix_tokens for run in kept] == [0, 64, 128, 192, 256]
    packed = [run for run in layout.runs if not run.is_prefix]
    assert sum(run.tokens for run in packed) == 10 * (9 + 4 * 2)
    assert len(packed) == 4  # three questions of 17 nodes in a run
    assert {run.prefix_tokens for run in packed} == {300}


def test_thousands_of_long_sequences_are_laid_out_in_a_moment() -> None:
    import time

    draw = np.random.default_rng(0)
    shots = tuple(draw.integers(0, 999, 1500).tolist())
    sequences = [
        (*shots, *question, choice, 5) for question in draw.integers(0, 999, (300, 60)).tolist() for choice in range(4)
    ]
    started = time.process_time()
    layout = as_tree(sequences, 8192)
    assert time.process_time() - started < 5  # it takes 0.3 s: quadratic work would take minutes
    ran = sum(run.ids.size for run in layout.runs)
    assert distinct_prefixes(sequences) <= ran <= 1.05 * distinct_prefixes(sequences)


@pytest.mark.parametrize("shape", ["zero-shot", "one prefix", "drawn"])
@pytest.mark.parametrize("budget", [2048, 8192])
def test_runs_are_near_the_budget_and_their_rows_are_short(shape: str, budget: int) -> None:
    draw = random.Random(0)

    def words(least: int, most: int) -> Tokens:
        return tuple(draw.choices(range(5, 400), k=draw.randint(least, most)))

    shots, questions = words(600, 600), []
    for _ in range(400):
        start = {"zero-shot": (1, 2, 3), "one prefix": shots, "drawn": (1, 2, 3, *words(130, 180))}[shape]
        question = start + words(12, 40)
        questions += [question + words(1, 5) for _ in range(4)]
    runs = [run for run in as_tree(questions, budget).runs if not run.is_prefix]
    total = sum(run.tokens for run in runs)
    assert len(runs) <= 8 * total / budget + 2
    attended = sum(run.ids.size * run.ids.shape[1] for run in runs) / total  # positions that a token attends to
    assert attended <= budget / 4
    together = [run for run in as_tree(questions, 8192, leaves=512, wide=8192).runs if not run.is_prefix]
    assert len(together) <= total / 8192 + len(set(questions)) / 512 + 1  # rows are continued in few batches


def test_a_nest_as_deep_as_a_long_text_needs_no_recursion() -> None:
    text = tuple(range(3000))
    sequences = [text[:end] for end in range(3000, 0, -3)]
    for budget, leaves in ((50, None), (50, 4), (5000, None)):
        layout = as_tree(sequences, budget, leaves)
        assert set(layout.stretches) == set(sequences)
        check_stack(layout.runs)
        again = sum(run.tokens for run in layout.runs) - 3000
        assert 0 <= again <= (0.05 * 3000 if leaves is None else 1000 + 0.05 * 3000)
