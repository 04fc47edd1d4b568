"""Answers in another language: identification, their effect on the score, and errors of suites."""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evosearch.errors import SuiteError
from evosearch.evaluation.harness import language
from evosearch.evaluation.harness.frozen import Answers
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.harness.language import in_language
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import IN_LANGUAGE

Data = dict[str, Any]
JAPANESE = "48/2 = 24。したがって、五月に24個のクリップを売りました。合計は48+24=72個です。答えは72です。"
ENGLISH = "In May she sold 48/2 = 24 clips, which makes 48+24 = 72 clips altogether. The answer is 72."
GERMAN = "Im Mai verkaufte sie 48/2 = 24 Klammern, also insgesamt 48+24 = 72 Klammern. Die Antwort ist 72."
WRITE: Data = {"task": "t_generate", "metric": "exact_match", "chance": 0.0, "filter": "letter"}


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        (JAPANESE, {"ja"}),
        (ENGLISH, {"en"}),
        (GERMAN, {"de"}),
        ("The answer is 18.", {"en", "de"}),  # too short to distinguish these two, long enough not to be Japanese
        ("答えは42です。", {"ja"}),
        ("まず x = 3 * 4 = 12 を計算する", {"ja"}),
        ("", {"ja", "en", "de"}),
        ("42", {"ja", "en", "de"}),
        ("48/2 = 24\n24+48 = 72", {"ja", "en", "de"}),
        ("x = 5", {"ja", "en", "de"}),
        ("\\boxed{18}", {"ja", "en", "de"}),
    ],
)
def test_which_languages_a_text_may_be_in(text: str, spoken: set[str]) -> None:
    assert {code for code in ("ja", "en", "de") if in_language(text, code)} == spoken
    assert {code for code in ("ja", "en", "de") if in_language(text, code)} == spoken  # deterministic


@pytest.fixture
def suite_of(suite_file: Path, tmp_path: Path) -> Any:
    def make(*tasks: Data, **options: Any) -> Suite:
        path = tmp_path / "s.yaml"
        counts = {"search": 4, "validation": 1, "test": 3}
        data = {"name": "s", "include": [str(suite_file.parent / "tasks")], "tasks": list(tasks), "documents": counts}
        path.write_text(yaml.safe_dump({**data, "fitness": "score", **options}))
        return load_suite(path)

    return make


def judged(suite: Suite, tokenizer: Any, texts: list[str]) -> Any:
    """The result of the search split if each answer is its right letter and a text."""
    harness = Harness(suite)
    frozen = harness.freeze(harness.batch("search"), tokenizer, 96)
    (task,) = frozen.tasks
    right = [f"{one.document['answer']} {text}" for one, text in zip(task.documents, texts, strict=True)]
    count = len(frozen.loglikelihoods)
    answers = Answers(np.full(count, -1.0), np.zeros(count, dtype=bool), right, np.zeros(count))
    return harness.collect(frozen, answers)[task.spec.name]


def test_an_answer_in_another_language_counts_as_wrong(suite_of: Any, tokenizer: Any) -> None:
    texts = [JAPANESE, ENGLISH, "7", GERMAN]
    plain = judged(suite_of(WRITE), tokenizer, texts)
    assert plain.columns["exact_match"].tolist() == [1, 1, 1, 1]
    assert IN_LANGUAGE not in plain.columns
    assert IN_LANGUAGE not in plain.reported
    found = judged(suite_of({**WRITE, "language": "ja"}), tokenizer, texts)
    assert found.columns["exact_match"].tolist() == [1, 0, 1, 0]
    assert found.columns[IN_LANGUAGE].tolist() == [1, 0, 1, 0]
    assert found.reported["exact_match"] == found.reported[IN_LANGUAGE] == 0.5
    assert "gold_logprob" not in found.columns  # `fitness: score` makes no requests for it


def test_the_share_is_reported_for_a_report_only_task(suite_of: Any, tokenizer: Any) -> None:
    choice = {"task": "t_choice", "metric": "acc", "chance": 0.3}
    suite = suite_of(choice, {"task": "t_generate", "report_only": True, "language": "en"})
    harness = Harness(suite)
    frozen = harness.freeze(harness.batch("search"), tokenizer, 96)
    count = len(frozen.loglikelihoods)
    answers = Answers(
        np.full(count, -1.0), np.zeros(count, dtype=bool), [ENGLISH, GERMAN, GERMAN, GERMAN], np.zeros(count)
    )
    found = harness.collect(frozen, answers)["t_generate"]
    assert found.reported[IN_LANGUAGE] == 0.25
    assert set(found.reported) == {"exact_match", IN_LANGUAGE}


def test_a_language_is_part_of_the_digest_and_of_the_fingerprint(suite_of: Any) -> None:
    plain, asked = suite_of(WRITE), suite_of({**WRITE, "language": "ja"})
    assert plain.digest() != asked.digest() != suite_of({**WRITE, "language": "en"}).digest()
    assert Harness(asked).fingerprint()["t_generate"]["language"] == "py3langid 0.4.0"
    assert "language" not in Harness(plain).fingerprint()["t_generate"]


WRONG: list[tuple[Data, str]] = [
    ({**WRITE, "language": "jp"}, "language: unknown language 'jp'. ISO 639 codes: ace, af, "),
    ({**WRITE, "language": "Japanese"}, "language: unknown language 'Japanese'. ISO 639 codes: ace, af, "),
    ({**WRITE, "language": "zxx"}, "language: unknown language 'zxx'."),
    ({**WRITE, "language": ""}, "language: "),
    (
        {"task": "t_choice", "metric": "acc", "chance": 0.3, "language": "ja"},
        "language: 't_choice' does not generate: its output type is multiple_choice. Remove this key.",
    ),
    ({**WRITE, "language": "ja", "unlearn": True}, "language: got 'ja' for an unlearning target"),
]


@pytest.mark.parametrize(("task", "message"), WRONG)
def test_what_cannot_be_used(task: Data, message: str, suite_of: Any, tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of(task))
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}: tasks[0].{message}")


def test_without_the_package_the_suite_is_refused_with_what_to_install(
    suite_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "py3langid"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "empty"
    folder.mkdir()
    kept = copy.copy(sys.meta_path)

    class Missing:
        """Raise what an environment without the package would raise."""

        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name.split(".")[0] == "py3langid":
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing, *kept])
    language._identifier.cache_clear()
    with pytest.raises(SuiteError) as caught:
        Harness(suite_of({**WRITE, "language": "ja"}))
    assert str(caught.value) == (
        f"{tmp_path / 's.yaml'}: tasks[0].language: language identification requires py3langid, which is not "
        "installed. Install it with `pip install 'evosearch[language]'`."
    )
    Harness(suite_of(WRITE))  # not needed by a suite without `language`
