"""Links that lead out of a folder: a recipe, a spec or a suite that names a file of its folder reads no other."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import RecipeError, SpecError, SuiteError
from evosearch.evaluation.suites.suite import load_suite
from evosearch.recipe import files
from evosearch.recipe.bundle import inner
from evosearch.spec.spec import load_spec
from evosearch.untrusted import beside

World = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
INNER = {"merge_method": "linear", "models": [{"model": "org/a", "parameters": {"weight": 1.0}}]}


def recipe(*models: str) -> str:
    listed = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
    return yaml.safe_dump({"merge_method": "linear", "models": listed})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untrusted folder, next to files of the user."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "inner.yaml").write_text(yaml.safe_dump(INNER))
    (tmp_path / "theirs" / "deep").mkdir(parents=True)
    (tmp_path / "theirs" / "own.yaml").write_text(yaml.safe_dump(INNER))
    return tmp_path / "theirs"


@pytest.mark.parametrize("written", ["./inner.yaml", "inner.yaml", "./inner.yaml#part", "deep/inner.yaml"])
@pytest.mark.parametrize("target", ["{mine}/inner.yaml", "/dev/zero", "/nowhere"])
def test_a_nested_recipe_is_no_link_out_of_its_folder(folder: Path, written: str, target: str) -> None:
    link = folder / written.partition("#")[0]
    link.symlink_to(target.format(mine=folder.parent / "mine"))
    (folder / "outer.yaml").write_text(recipe(written))
    with pytest.raises(RecipeError) as caught:
        files.load(folder / "outer.yaml")
    said = str(caught.value)
    assert said.startswith(f"{folder}/outer.yaml: {link}: ")
    if target == "/nowhere":
        assert "No such file" in said
    else:
        assert f"leads to {link.resolve()}, outside of {folder}. Files, and links to files in this folder. If " in said


def test_a_nested_recipe_is_not_behind_a_linked_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent / "mine")
    (folder / "outer.yaml").write_text(recipe("./sub/inner.yaml"))
    with pytest.raises(RecipeError, match=r"sub/inner\.yaml: leads to .*/mine/inner\.yaml, outside of"):
        files.load(folder / "outer.yaml")
    (folder / "outer.yaml").write_text(recipe("./sub/../inner.yaml"))  # not mine/../inner.yaml, as the system reads it
    (folder.parent / "inner.yaml").write_text(yaml.safe_dump(INNER))
    (nested,) = inner(files.load(folder / "outer.yaml"))
    assert nested == str(folder / "inner.yaml")


def test_a_recipe_of_a_nested_recipe_is_checked_too(folder: Path) -> None:
    (folder / "deep" / "middle.yaml").write_text(recipe("./inner.yaml"))
    (folder / "deep" / "inner.yaml").symlink_to(folder.parent / "mine" / "inner.yaml")
    (folder / "outer.yaml").write_text(recipe("./deep/middle.yaml"))
    (nested,) = inner(files.load(folder / "outer.yaml"))
    with pytest.raises(RecipeError, match="leads to"):
        files.load_reference(nested)


def test_links_that_are_allowed(folder: Path) -> None:
    """Those within the folder, those of a folder that the path names, full paths, and the file the user names."""
    (folder / "link.yaml").symlink_to("own.yaml")
    (folder / "deep" / "up.yaml").symlink_to(folder / "own.yaml")
    shared = folder.parent / "shared"
    shared.mkdir()
    (shared / "store").write_text(yaml.safe_dump(INNER))
    (shared / "x.yaml").symlink_to("store")
    mine = folder.parent / "mine"
    (mine / "full.yaml").symlink_to(folder / "own.yaml")
    for written in ("./link.yaml", "./deep/up.yaml", "../shared/x.yaml", str(mine / "full.yaml")):
        (folder / "outer.yaml").write_text(recipe(written))
        (nested,) = inner(files.load(folder / "outer.yaml"))
        assert files.load_reference(nested) == files.load(folder / "own.yaml"), written
    (folder.parent / "named.yaml").symlink_to(folder / "own.yaml")
    assert files.load(folder.parent / "named.yaml") == files.load(folder / "own.yaml")
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    (folder / "outer.yaml").write_text(recipe("./link.yaml"))
    assert inner(files.load(linked / "outer.yaml")) == (str(linked / "link.yaml"),)


def test_a_path_is_relative_or_full_as_it_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    assert beside("a/../own.yaml", Path(), RecipeError) == Path("own.yaml")
    shared = folder.parent / "shared"
    shared.mkdir()
    (shared / "store").touch()
    (shared / "x.yaml").symlink_to("store")
    assert beside("../shared/x.yaml", Path(), RecipeError) == Path("../shared/x.yaml"), "in the folder that it names"
    assert beside("~/x.yaml", folder, RecipeError) == tmp_path / "x.yaml"
    assert beside("missing.yaml", folder, RecipeError) == folder / "missing.yaml"
    (folder / "own2.yaml").symlink_to("../mine/inner.yaml")
    with pytest.raises(RecipeError, match=r"^own2\.yaml: leads to"):
        beside("own2.yaml", Path(), RecipeError)


def test_hub_files_of_a_recipe_stay_in_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text(yaml.safe_dump(INNER))
    (blobs / "2").write_text(recipe("./inner.yaml"))
    (snapshot / "inner.yaml").symlink_to("../../blobs/1")
    (snapshot / "outer.yaml").symlink_to("../../blobs/2")
    assert inner(files.load(snapshot / "outer.yaml")) == (str(snapshot / "inner.yaml"),)


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_specs_suite_is_no_link_out_of_its_folder(
    world: World, evosearch: Program, tmp_path: Path, command: str
) -> None:
    spec = world()
    suite = spec.parent / "suite.yaml"
    shutil.move(suite, tmp_path / "suite.yaml")
    suite.symlink_to(tmp_path / "suite.yaml")
    code, out, err = evosearch(command, spec)
    said = "".join((out + err).split())
    assert code == 2
    assert f"{suite}:leadsto{tmp_path}/suite.yaml,outsideof{spec.parent}" in said
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SpecError, match="leads to"):
        load_spec(spec)


def test_a_specs_recipe_is_no_link_out_of_its_folder(world: World, evosearch: Program, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text(yaml.safe_dump(INNER))
    spec = world()
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["models"][0]["model"] = "./first.yaml"
    spec.write_text(yaml.safe_dump(data))
    (spec.parent / "first.yaml").symlink_to(tmp_path / "secret.yaml")
    code, out, err = evosearch("check", spec)
    assert code == 2
    assert f"first.yaml:leadsto{tmp_path}/secret.yaml,outsideof" in "".join((out + err).split())


def test_prompts_are_no_link_out_of_the_suites_folder(folder: Path) -> None:
    """Prompts are shown to models, recorded by hash, and uploaded by `submit`."""
    (folder.parent / "mine" / "key").write_text("SECRET")
    (folder / "prompts").symlink_to(folder.parent / "mine" / "key")
    data: dict[str, Any] = {
        "name": "s",
        "fitness": {"teachers": {"p": "org/a"}},
        "tasks": [{"name": "p", "prompts": "prompts"}],
    }
    data["documents"] = {"search": 1, "validation": 1, "test": 1}
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SuiteError, match=r"theirs/prompts: leads to .*/mine/key, outside of") as caught:
        load_suite(folder / "s.yaml")
    assert "SECRET" not in str(caught.value)
    os.remove(folder / "prompts")
    (folder / "prompts").write_text("Say hello\n")
    assert load_suite(folder / "s.yaml").tasks[0].prompts == str(folder / "prompts")
