"""Near-duplicates: the join compared with counting every pair, and which texts count as equal."""

import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evosearch.evaluation.suites.near_duplicates import near_duplicates
from evosearch.evaluation.suites.shingles import WORDS, words
from evosearch.zoo.tiny_data import rows

LONG = (
    "A farmer has twelve hens, and each of them lays five eggs a week. He sells the eggs at the market for twenty "
    "cents apiece, keeps three for breakfast every morning, and wants to know what he earns in four weeks of spring."
)


def clusters(texts: list[str], threshold: float = 0.8) -> list[list[int]]:
    """The clusters of texts, by position."""
    found = near_duplicates([{str(i): {"text": text, "id": f"x{i}"} for i, text in enumerate(texts)}], threshold)
    together: dict[str, list[int]] = {}
    for name, cluster in found.items():
        together.setdefault(cluster, []).append(int(name))
    return sorted(sorted(members) for members in together.values())


def by_counting(texts: list[str], threshold: float) -> list[list[int]]:
    """The same by definition: Jaccard similarity of the multisets of every pair, and connected components."""
    sets = []
    for text in texts:
        found = words(text)
        sets.append(Counter(tuple(found[i : i + WORDS]) for i in range(max(1, len(found) - WORDS + 1))))
    member = list(range(len(texts)))
    for i, one in enumerate(sets):
        for j, other in enumerate(sets[:i]):
            if (one & other).total() >= threshold * (one | other).total() - 1e-9:
                member = [member[j] if m == member[i] else m for m in member]
    together = [[i for i, m in enumerate(member) if m == label] for label in sorted(set(member))]
    return sorted(members for members in together if len(members) > 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.65, 0.8, 0.95, 1.0]))
def test_no_pair_is_missed_and_none_is_added(seed: int, threshold: float) -> None:
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(60)]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(12, 40))) for _ in range(8)]
    for _ in range(30):  # copies of copies, each with some words changed, lost or doubled
        found = draw.choice(texts).split()
        for _ in range(draw.randint(0, 5)):
            at = draw.randrange(len(found))
            found[at : at + 1] = draw.choice([[draw.choice(vocabulary)], [], [found[at]] * 2])
        if len(set(found)) > 9:  # with few distinct words, shingles are wider than three
            texts.append(" ".join(found))
    draw.shuffle(texts)
    assert clusters(texts, threshold) == by_counting(texts, threshold)


@pytest.mark.parametrize(
    "other",
    [
        LONG.upper(),
        LONG.replace(",", " ,").replace(".", ""),
        LONG.replace("A farmer", "\uff21 farmer"),  # a full-width letter
        LONG.replace("spring", "autumn"),
        "  " + LONG.replace(" ", "\n"),
    ],
)
def test_texts_that_say_the_same(other: str) -> None:
    assert clusters([LONG, other, "something else entirely, of as many words as it takes to be a text"]) == [[0, 1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG.replace("twelve", "9").replace("five", "4").replace("twenty", "30").replace("four", "6")),
        ("What is 12 + 34?", "What is 12 - 34?"),
        ("What is 12 plus 34?", "What is 12 plus 35?"),
        ("a b c d e f g h", "a b c d e f h g"),
        ("What is the capital of Iowa?", "What is the capital of Utah?"),
        ("tick tick tick tick", "tick tick tick tick tick tick"),  # repetition matters
        ("abcde", "abced"),
        ("", ""),
        ("三つのりんごと二つのみかんで果物はいくつ", "東京から大阪まで新幹線で行くと何時間かかりますか"),
    ],
)
def test_texts_that_do_not(one: str, other: str) -> None:
    assert clusters([one, other]) == []


def test_scripts_without_spaces_are_compared_by_their_characters() -> None:
    text = "ナタリアは四月に四十八人の友達にクリップを売り、五月にはその半分を売りました。合計でいくつ売りましたか"
    assert clusters([text, text.replace("ナタリア", "ナタリー"), text[::-1]]) == [[0, 1]]


def test_random_strings_are_no_near_duplicates() -> None:
    draw = random.Random(0)
    for letters, length, joint in [("ab", 30, " "), ("01", 30, " "), ("abcdefghij", 6, ""), ("abcdefghij", 8, " ")]:
        texts = {joint.join(draw.choices(letters, k=length)) for _ in range(400)}
        assert clusters(sorted(texts)) == []
    for task in ("reverse", "sort", "deal", "median"):
        found = rows(task)
        assert near_duplicates([{str(row): row for row in found}], 0.8) == {}


def pool(*documents: dict[str, Any]) -> dict[str, Any]:
    return {str(i): document for i, document in enumerate(documents)}


def test_labels_instructions_and_identifiers_are_not_compared() -> None:
    questions = [f"q{i}a q{i}b q{i}c" for i in range(40)]
    asks = "Read the text below carefully and answer in one word, please, as well as you can."
    shared = [
        {"question_id": f"set-{i}", "ask": asks, "label": "yes no"[i % 2 * 4 :], "question": q}
        for i, q in enumerate(questions)
    ]
    assert near_duplicates([pool(*shared)], 0.5) == {}
    twin = {**shared[7], "question_id": "set-99", "label": "maybe"}
    assert near_duplicates([pool(*shared, twin)], 1.0) == {"7": "40", "40": "40"}  # "40" < "7"


def test_every_field_that_holds_content_counts() -> None:
    one = {"question": "Which of these is it?", "choices": {"text": ["a red fox", "a grey wolf"], "label": ["A", "B"]}}
    other = {"question": "Which of these is it?", "choices": {"text": ["a bay mare", "a dun cow"], "label": ["A", "B"]}}
    numbers = [{"question": "Sort these.", "numbers": [3, 1, 2 + i]} for i in range(2)]
    assert near_duplicates([pool(one, other, *numbers)], 0.8) == {}
    assert near_duplicates([pool(one, {**one, "new": True})], 0.8) == {"0": "0", "1": "0"}


def test_pools_are_compared_with_one_another() -> None:
    train = {"t": {"question": LONG, "rationale": "x"}, "u": {"question": "a b c d e", "rationale": "y"}}
    test = {"s": {"text": LONG.lower()}, "r": {"text": "f g h i j"}}
    assert near_duplicates([train, test], 0.8) == {"s": "s", "t": "s"}


def test_a_cluster_is_called_by_its_least_member_whatever_else_there_is() -> None:
    few = near_duplicates([pool({"text": LONG}, {"text": LONG + " Yes."})], 0.8)
    more = near_duplicates(
        [pool({"text": LONG}, {"text": LONG + " Yes."}, *({"text": f"{i} a b c"} for i in range(9)))], 0.8
    )
    assert few == more == {"0": "0", "1": "0"}


def test_one_great_cluster_hides_no_pair_outside_of_it() -> None:
    """Most documents are one template; some are similar to a variant of it, some to one another."""
    draw = random.Random(1)
    frame = [f"t{i}" for i in range(30)]
    texts = [" ".join([*frame, draw.choice("abcdefgh")]) for _ in range(300)]
    texts += [
        " ".join([*frame[:27], "x", "y", "z"]),
        " ".join([*frame[:24], *"xyzuvw"]),
        " ".join([*frame[:23], *"xyzuvws"]),
    ]
    texts += [" ".join(draw.choices("abcdefghijklmnop", k=20)) for _ in range(20)]
    draw.shuffle(texts)
    assert clusters(texts) == by_counting(texts, 0.8)


def test_twenty_thousand_documents() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{int(draw.paretovariate(0.6)) % 30_000}" for _ in range(50_000)]
    documents = {str(i): {"text": " ".join(draw.choices(vocabulary, k=40))} for i in range(20_000)}
    documents["5"] = {"text": documents["19999"]["text"] + " more"}
    began = time.process_time()
    assert near_duplicates([documents], 0.8) == {"19999": "19999", "5": "19999"}
    assert time.process_time() - began < 10
