"""Model cards of exports: what they state, the licences' warnings, and that they are read back."""

from pathlib import Path

import pytest
import yaml

from evosearch.checkpoints.licence_families import FAMILIES, family_of, licence_warnings, merged_licence
from evosearch.checkpoints.model_card import Card, card_of
from evosearch.promotion.card import CardSource, card_text
from evosearch.recipe.provenance import Provenance
from evosearch.recipe.schema import Recipe

INTERVAL = {"value": 61.5, "lower": 58.25, "upper": 64.75, "n": 400}
RECORDED = {
    "evosearch": "0.2.0",
    "date": "2026-12-01",
    "search": "night",
    "search_id": "5e" * 32,
    "candidate": "17",
    "recipe_id": "ab" * 32,
    "weights_sha256": "cd" * 32,
    "inputs": [
        {"model": "org/base@main", "content_sha256": "11" * 32},
        {"model": "/srv/secret/math", "content_sha256": "22" * 32},
        {"model": "org/base@main+org/lora", "content_sha256": "33" * 32},
    ],
    "seeds": {"recipe": 0, "optimizer": 7},
    "suite": {"name": "quick", "digest": "ef" * 32},
    "scores": {
        "test": INTERVAL
        | {
            "tasks": {"choice": {"metric": "acc", "value": 0.75, "stderr": 0.02, "n": 400}},
            "baselines": {"base": INTERVAL | {"value": 40.0}, "parent:0": INTERVAL | {"value": 55.0}},
        }
    },
    "test_openings": 3,
    "statements": ["The suite acknowledges *everything*."],
}
RECIPE = {
    "merge_method": "task_arithmetic",
    "base_model": "org/base@main",
    "models": [
        {"model": "/srv/secret/math", "parameters": {"weight": 0.5}},
        {"model": "org/base@main+org/lora", "parameters": {"weight": 0.3}},
    ],
}
COMMITS = {"org/base@main": f"org/base@{'a' * 40}", "org/lora": f"org/lora@{'b' * 40}"}


def source(adapter_of: str | None = None, **cards: Card) -> CardSource:
    stated = {
        "org/base@main": Card(("apache-2.0",)),
        "/srv/secret/math": Card(("cc-by-nc-4.0",), ("org/base",)),
        "org/lora": Card(),
    }
    recipe = Recipe.model_validate(RECIPE)
    written = "base_model: org/base\n"
    return CardSource(recipe, written, Provenance.model_validate(RECORDED), stated | cards, COMMITS, adapter_of)


def test_the_card_states_models_licences_scores_and_how_to_rebuild(tmp_path: Path) -> None:
    text = card_text(source())
    (tmp_path / "README.md").write_text(text)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other"
    assert front["base_model"] == ["org/base", "org/lora"]
    assert (front["base_model_relation"], front["library_name"]) == ("merge", "transformers")
    assert "task_arithmetic" in front["tags"]
    assert card_of(tmp_path) == Card(("terms-of-all-parents",), ("org/base", "org/lora"))
    assert "secret" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert f"| org/base@{'a' * 40} | base | apache-2.0 | permissive | `{'11' * 32}` |" in rows
    assert f"| math | parent | cc-by-nc-4.0 | non-commercial | `{'22' * 32}` |" in rows
    assert f"| org/lora@{'b' * 40} | adapter | not stated | unknown | `{'33' * 32}` |" in rows
    scores = [line for line in rows if "58.25" in line]
    assert [line.split(" | ")[0] for line in scores] == ["| **this merge**", "| parent:0", "| base"]
    assert "| **this merge** | 61.50 | 58.25 to 64.75 |" in rows
    assert "- math: cc-by-nc-4.0 permits no commercial use, which then holds for the merge" in text
    assert f"- org/lora@{'b' * 40}: no licence is stated; ask its authors" in text
    assert "- math is derived from org/base, according to its card." in text
    assert "choice acc 75.00 ± 2.00 (400 items)" in text
    assert "opened 3 time(s)" in text
    assert r"acknowledges \*everything\*" in text
    assert "$ evosearch verify recipe.yaml --scores" in text
    assert "@software{evosearch," in text
    assert "arXiv:2212.04089" in text
    assert "```yaml\nbase_model: org/base\n```" in text


def test_an_adapter_names_its_base_and_the_meaning_of_the_scores() -> None:
    text = card_text(source("org/base@main"))
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["base_model_relation"], front["library_name"]) == ("adapter", "peft")
    assert 'AutoModelForCausalLM.from_pretrained("org/base")' in text
    assert "The adapter approximates the merge" in text


def test_models_of_one_permissive_licence_give_it_to_the_merge_without_warnings() -> None:
    mit = Card(("mit",))
    cards = {"org/base@main": mit, "/srv/secret/math": mit, "org/lora": mit}
    text = card_text(source(**cards))  # type: ignore[arg-type]
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit"
    assert "No conflict is known" in text


def test_text_of_cards_is_no_markup() -> None:
    bad = Card(("<script>|[x](y)\n# head`",))
    text = card_text(source(**{"org/lora": bad}))
    assert "<script" not in text.replace("\\<script", "")
    assert "\n# head" not in text


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ({"a": ["apache-2.0"], "b": ["mit"]}, []),
        ({"a": ["gpl-3.0"], "b": ["apache-2.0"]}, []),
        ({"a": ["gpl-3.0"], "b": ["agpl-3.0"]}, []),
        ({"a": ["gpl-2.0"], "b": ["gpl-3.0"]}, ["a and b: conflict: gpl-2.0 and gpl-3.0 each demand"]),
        (
            {"a": ["gpl-3.0"], "b": ["cc-by-nc-4.0"]},
            ["b: cc-by-nc-4.0 permits no", "a and b: conflict: gpl-3.0 permits"],
        ),
        (
            {"a": ["cc-by-sa-4.0"], "b": ["llama3"]},
            ["b: llama3 has its own", "a and b: conflict: cc-by-sa-4.0 permits"],
        ),
        ({"a": ["llama3"], "b": ["gemma"]}, ["a: llama3", "b: gemma", "a and b: the terms of llama3 and of gemma"]),
        ({"a": ["cc-by-nd-4.0"]}, ["a: cc-by-nd-4.0 does not permit derived works"]),
        ({"a": ["my-licence"], "b": []}, ["b: no licence is stated", "a: my-licence is not known to evosearch"]),
    ],
)
def test_conflicts_between_families(licences: dict[str, list[str]], expected: list[str]) -> None:
    found = licence_warnings(licences)
    assert len(found) == len(expected), found
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found


def test_the_table_of_families_is_in_lower_case_and_the_merge_has_a_licence_only_if_all_agree() -> None:
    assert all(name == name.lower() for name in FAMILIES)
    assert family_of("Apache-2.0") == "permissive"
    assert merged_licence({"a": ["mit"], "b": ["mit"]}) == "mit"
    assert merged_licence({"a": ["mit"], "b": ["apache-2.0"]}) is None
    assert merged_licence({"a": ["mit"], "b": []}) is None
    assert merged_licence({"a": ["cc-by-nd-4.0"]}) is None
    assert merged_licence({}) is None
