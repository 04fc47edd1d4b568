"""Preparation of parents on a node: once for several workers, and for later runs."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evosearch.checkpoints import reader, references, writer
from evosearch.checkpoints.adapters import adapted_model
from evosearch.checkpoints.cache import copies, hashes
from evosearch.checkpoints.cache.inventory import inventory
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.execution import node
from evosearch.execution import worker as workers
from evosearch.execution.node import prepare_node
from evosearch.execution.worker import Worker
from evosearch.execution.worker_config import WorkerConfig
from evosearch.materialize.inputs import Opener
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.setup.models import open_models

World = Callable[..., Path]

# A worker in another process: it prepares, and reports what it hashed, wrote and copied, or pauses during step `stop`
PREPARE = """
import json, time
import torch
from evosearch.checkpoints import reader, writer
from evosearch.checkpoints.adapters import adapted_model
from evosearch.checkpoints.cache import copies, hashes
from evosearch.execution import node

torch.set_num_threads(1)
hashes.TICK_NS = hashes.COARSE_NS = -1
seen = {"hashed": [], "written": [], "copied": []}

def watch(owner, name, kind, what):
    original = getattr(owner, name)
    def watched(*arguments, **more):
        if stop == kind and len(seen[kind]) == 3:
            out.write_text("here")
            time.sleep(600)
        seen[kind].append(what(*arguments))
        return original(*arguments, **more)
    setattr(owner, name, watched)

for owner in (reader, adapted_model):
    watch(owner, "tensor_line", "hashed", lambda name, tensor: name)
watch(writer.CheckpointWriter, "add", "written", lambda self, name, tensor: name)
watch(copies.shutil, "copyfile", "copied", lambda source, target: source.name)
far = config.cache.parent / "far"
node.mounts = lambda: [("/", "ext4"), (str(far), "nfs4")]
out.with_suffix(".ready").touch()
while not (out.parent / "go").exists():
    time.sleep(0.01)
found = node.prepare_node(config)
contents = {name: checkpoint.content_sha256() for name, checkpoint in found.items()}
out.with_suffix(".partly").write_text(json.dumps(seen | {"contents": contents}))
out.with_suffix(".partly").rename(out)
"""


@pytest.fixture(autouse=True)
def _coarse_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the margin of the hash cache, since files of a test are younger than it."""
    monkeypatch.setattr(hashes, "TICK_NS", -1)
    monkeypatch.setattr(hashes, "COARSE_NS", -1)


@pytest.fixture
def models(world: World, tmp_path: Path) -> Path:
    """Copies of the world's models, and an adapter with tensors of every kind."""
    source, folder = world().parent, tmp_path / "far"
    folder.mkdir()
    for name in ("base", "expert1", "expert2"):
        shutil.copytree((source / name).resolve(), folder / name)
    base, generator = Checkpoint.open(folder / "base"), torch.Generator().manual_seed(4)
    tensors = {}
    for name, info in base.tensors.items():
        if name.split(".")[-2] in ("q_proj", "down_proj"):
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = 0.3 * torch.randn((2, info.shape[1]), generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn((info.shape[0], 2), generator=generator)
    tensors["base_model.model.lm_head.weight"] = 1.01 * base.load("lm_head.weight").double()
    (folder / "lora").mkdir()
    save_file(tensors, folder / "lora" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    settings |= {"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def linear(*named: str) -> dict[str, Any]:
    listed = [{"model": name, "parameters": {"weight": 1.0 / (index + 1)}} for index, name in enumerate(named)]
    return {"merge_method": "linear", "models": listed}


def config_of(models: Path, *named: str, **more: Any) -> WorkerConfig:
    """Return the config of a worker with these models of the folder."""
    paths = ["+".join(str(models / piece) if "." not in piece and ":" not in piece else piece for piece in n.split("+"))
             for n in named]  # fmt: skip
    cache = more.pop("cache", models.parent / "cache")
    return WorkerConfig(recipe=linear(*paths), suite={}, cache=cache, device="cpu", threads=1, **more)


def nested(models: Path) -> dict[str, Any]:
    return {"stage:one": linear(str(models / "base"), str(models / "expert1"))}


def opened_by_itself(config: WorkerConfig, cache: Path) -> dict[str, Checkpoint]:
    """Open the same models in one process, applying adapters as tensors are loaded."""
    opener = Opener(cache, recipes=config.recipes)
    return opener.inputs(Recipe.model_validate(config.recipe), config.also)


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("repeated work")


def nothing_is_read_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((reader, "tensor_line"), (adapted_model, "tensor_line"), (writer.CheckpointWriter, "__init__")):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr(copies.shutil, "copyfile", forbidden)


class Others:
    """Workers on this node in separate processes."""

    def __init__(self, folder: Path, config: WorkerConfig, count: int, stop: str = "") -> None:
        folder.mkdir()
        self._outs, self._go = [folder / f"{index}.json" for index in range(count)], folder / "go"
        start = multiprocessing.get_context("forkserver")  # imports everything only once
        start.set_forkserver_preload(["evosearch.execution.worker"])
        named = [{"config": config, "out": out, "stop": stop} for out in self._outs]
        self.processes = [start.Process(target=exec, args=(PREPARE, each), daemon=True) for each in named]
        for process in self.processes:
            process.start()
        self._until(lambda: all(out.with_suffix(".ready").exists() for out in self._outs))

    def go(self) -> list[dict[str, Any]]:
        """Start all workers at the same time; return their reports."""
        self._go.touch()
        for process in self.processes:
            process.join(120)
        assert [process.exitcode for process in self.processes] == [0] * len(self.processes)
        return [json.loads(out.read_text()) for out in self._outs]

    def go_to_the_stop(self) -> None:
        self._go.touch()
        self._until(lambda: all(out.exists() for out in self._outs))

    def die(self) -> None:
        """Kill all workers."""
        for process in self.processes:
            process.kill()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL

    def _until(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not there():
            assert time.monotonic() < deadline
            assert all(process.is_alive() for process in self.processes)
            time.sleep(0.02)


def test_concurrent_workers_prepare_once(models: Path, tmp_path: Path) -> None:
    config = config_of(models, "base+lora", "stage:one", "expert2", recipes=nested(models))
    alone = opened_by_itself(config, tmp_path / "other")
    config = replace(config, inputs={name: checkpoint.content_sha256() for name, checkpoint in alone.items()})
    both = Others(tmp_path / "both", config, 2).go()
    assert [found["contents"] for found in both] == [dict(config.inputs)] * 2
    hashed, written, copied = (sorted(found[key] for found in both) for key in ("hashed", "written", "copied"))
    assert [hashed[0], written[0], copied[0]] == [[], [], []], "one worker did everything"
    # Each byte is read once: base, both experts (their copies), and the adapter's file
    lora = load_file(models / "lora" / "adapter_model.safetensors")
    assert len(hashed[1]) == 3 * len(Checkpoint.open(models / "base").tensors) + len(lora)
    # The nested recipe's model, and the tensors that the adapter changes
    merged = list(alone["stage:one"].tensors)
    changed = [name for name in merged if name.split(".")[-2] in ("q_proj", "down_proj") or name == "lm_head.weight"]
    assert sorted(written[1]) == sorted([*merged, *changed])
    assert copied[1].count("model.safetensors") == 3
    assert not [*config.cache.rglob("*.partial")]


def test_later_workers_read_and_write_no_weights(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does the first, for what the controller on its node has hashed and merged."""
    config = config_of(models, "expert1", "stage:one", recipes=nested(models))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(config.cache))
    recipe = Recipe.model_validate(config.recipe)
    prepared = open_models(recipe, "spec.yaml: recipe", Silent(), recipes=config.recipes)
    assert prepared.inputs.keys() == set(recipe.references())
    nothing_is_read_or_written(monkeypatch)
    for _ in range(2):
        found = prepare_node(replace(config, inputs=prepared.inputs, recipes=prepared.opener.nested))
        assert found.keys() == prepared.checkpoints.keys()


def test_a_node_with_another_model_is_rejected(models: Path, tmp_path: Path) -> None:
    config = config_of(models, "base+lora", "expert1")
    alone = opened_by_itself(config, tmp_path / "other")
    config = replace(config, inputs={name: checkpoint.content_sha256() for name, checkpoint in alone.items()})
    prepare_node(config)
    path = models / "expert1" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] += 0.5
    times = path.stat()
    save_file(tensors, path, metadata={"format": "pt"})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    name, now = str(models / "expert1"), Checkpoint.open(models / "expert1").content_sha256()
    with pytest.raises(CheckpointError) as caught:
        prepare_node(config)
    text = str(caught.value)
    assert text.startswith(f"{name}: the model on {socket.gethostname()} (content ")
    assert now[:12] in text
    assert config.inputs[name][:12] in text
    assert "Put the same files on every node" in text
    prepare_node(replace(config, inputs={**config.inputs, name: now}))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_node_with_another_config_or_tokenizer_is_rejected(models: Path, file: str) -> None:
    config = config_of(models, "base+lora", "expert1")
    recipe = Recipe.model_validate(config.recipe)
    there = open_models(recipe, "spec.yaml: recipe", Silent())
    config = replace(config, inputs=there.inputs, files=there.files)
    prepare_node(config)
    path, name = models / "expert1" / file, str(models / "expert1")
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"rope_theta": 7.0}))
    with pytest.raises(CheckpointError) as caught:
        prepare_node(config)
    text = str(caught.value)
    assert text.startswith(f"{name}: the {file} on {socket.gethostname()} (content ")
    assert config.files[name][file][:12] in text
    assert "Put the same files on every node" in text
    path.unlink()
    if file != "config.json":
        with pytest.raises(
            CheckpointError, match=rf"the {file} on .* \(missing\) differs from the one the search was started with"
        ):
            prepare_node(config)
    path.write_text(before)
    prepare_node(config)


def test_a_prepared_adapter_is_written_once_and_scores_as_if_applied_on_load(
    models: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load_suite(world().parent / "suite.yaml")
    harness = Harness(suite)
    config = replace(config_of(models, "base+lora", "expert1"), suite=suite.model_dump(mode="json"))
    alone, steps = opened_by_itself(config, tmp_path / "other"), list[str]()
    found = prepare_node(config, lambda step, fraction: steps.append(step))
    name = f"{models / 'base'}+{models / 'lora'}"
    assert set(steps) == {f"applying the adapter of {name}"}
    assert found[name].content_sha256() == alone[name].content_sha256()
    kinds = set()
    for tensor, info in alone[name].tensors.items():
        made, mapped = alone[name].load(tensor), found[name].load(tensor)
        assert made.dtype == mapped.dtype
        assert torch.equal(made, mapped)
        assert found[name].tensors[tensor] == info
        assert (found[name].shares(tensor) is None) == (alone[name].shares(tensor) is None)
        kinds |= {info.dtype} if found[name].shares(tensor) is None else set()
    assert kinds == {"F32", "F64"}
    assert str(config.cache / "prepared") in Path("/proc/self/maps").read_text(), "mapped, so that workers share it"
    recipe, batch = Recipe.model_validate(config.recipe), harness.batch("search")
    ours = Worker(config, harness=harness).run(Job("0@search", recipe, batch))
    monkeypatch.setattr(workers, "prepare_node", lambda config, progress: alone)
    theirs = Worker(config, harness=harness).run(Job("0@search", recipe, batch))
    assert ours.card is not None, ours.failure
    assert theirs.card is not None, theirs.failure
    for task, columns in theirs.card.columns.items():
        assert {key: column.tolist() for key, column in columns.items()} == {
            key: column.tolist() for key, column in ours.card.columns[task].items()
        }


@pytest.mark.parametrize("stop", ["hashed", "written", "copied"])
def test_a_killed_preparation_is_repeated(models: Path, tmp_path: Path, stop: str) -> None:
    config = config_of(models, "base+lora", "stage:one", recipes=nested(models))
    if stop == "written":  # while writing the adapter's tensors
        config = config_of(models, "base+lora")
    others = Others(tmp_path / "killed", config, 1, stop)
    others.go_to_the_stop()
    others.die()
    left = [*config.cache.rglob("*.partial")]
    assert bool(left) == (stop != "hashed")
    alone = opened_by_itself(config, tmp_path / "other")
    (again,) = Others(tmp_path / "again", config, 1).go()
    assert again["contents"] == {name: checkpoint.content_sha256() for name, checkpoint in alone.items()}
    assert not [*config.cache.rglob("*.partial")]


def test_a_killed_merge_of_a_nested_recipe_is_repeated(models: Path, tmp_path: Path) -> None:
    config = config_of(models, "stage:one", recipes=nested(models))
    others = Others(tmp_path / "killed", config, 1, "written")
    others.go_to_the_stop()
    others.die()
    assert [path.parent.name for path in config.cache.rglob("*.partial")] == ["merged"]
    found, alone = prepare_node(config), opened_by_itself(config, tmp_path / "other")
    for name in alone["stage:one"].tensors:
        assert torch.equal(found["stage:one"].load(name), alone["stage:one"].load(name))
    assert not [*config.cache.rglob("*.partial")]


def test_a_node_keeps_its_cache_below_a_size_but_not_what_it_uses(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(models, "base+lora", "stage:one", recipes=nested(models))
    (config.cache / "copies" / "unused").mkdir(parents=True)
    (config.cache / "copies" / "unused" / "model.safetensors").write_bytes(b"1" * 10000)
    prepare_node(config)
    assert [path.name for path in (config.cache / "copies").iterdir()] == ["unused"]
    monkeypatch.setenv("EVOSEARCH_CACHE_MAX", "1KB")
    found = prepare_node(config)
    left = inventory(config.cache).entries
    assert {(one.kind, one.what) for one in left} == {
        ("prepared", f"{models / 'base'}+{models / 'lora'}"),
        ("merged", "stage:one"),
    }
    assert all(one.in_use for one in left)
    assert all(checkpoint.load(name) is not None for checkpoint in found.values() for name in checkpoint.tensors)
    monkeypatch.setenv("EVOSEARCH_CACHE_MAX", "small")
    with pytest.raises(CheckpointError, match="EVOSEARCH_CACHE_MAX: got 'small'"):
        prepare_node(config)


def test_models_on_network_file_systems_are_copied_once_and_others_mapped_in_place(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = tmp_path / "near"
    shutil.copytree(models / "expert1", near)
    config = config_of(models, "base", "expert2")
    config = replace(config, also=(str(near),))
    table = [("/", "ext4"), (str(models), "lustre")]
    monkeypatch.setattr(node, "mounts", lambda: table)
    found = prepare_node(config)
    assert found[str(near)].folder == near
    for name in ("base", "expert2"):
        checkpoint = found[str(models / name)]
        assert checkpoint.folder.parent == config.cache / "copies"
        assert checkpoint.reference == str(models / name)
        assert checkpoint.content_sha256() == Checkpoint.open(models / name).content_sha256()
        assert (checkpoint.tokenizer_folder / "tokenizer.json").is_file()
    nothing_is_read_or_written(monkeypatch)
    assert prepare_node(config)[str(models / "base")].folder == found[str(models / "base")].folder
    # No copies if the cache is on a network file system too
    monkeypatch.setattr(node, "mounts", lambda: [("/", "nfs")])
    assert prepare_node(config)[str(models / "base")].folder == models / "base"


def test_a_damaged_copy_is_named_with_advice_to_remove_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(models, "base", "expert1")
    monkeypatch.setattr(node, "mounts", lambda: [("/", "ext4"), (str(models / "expert1"), "nfs4")])
    found = prepare_node(config)
    config = replace(config, inputs={name: checkpoint.content_sha256() for name, checkpoint in found.items()})
    name = str(models / "expert1")
    copied = found[name].folder
    del found
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one flipped bit
    weights.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        prepare_node(config)
    assert str(caught.value).startswith(f"{name}: the model on {socket.gethostname()} (content ")
    assert f"the copy is damaged: remove {copied} on this node" in str(caught.value)
    shutil.rmtree(copied)
    assert prepare_node(config)[name].folder == copied


def test_a_full_disk_is_named_before_anything_is_written(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**6, used=0, free=1000))
    cache = models.parent / "cache"
    with pytest.raises(CheckpointError) as caught:
        prepare_node(config_of(models, "base+lora"))
    adapted = 4 * 3 * (32 * 32 + 32 * 48) + 8 * 32 * len(Checkpoint.open(models / "base").load("lm_head.weight"))
    said = (
        f"{cache}: not enough disk space for 1 model with adapters applied: {adapted / 1024:.1f} KiB needed, "
        "1000 bytes free"
    )
    assert said in str(caught.value)
    assert "Free some space, or choose a folder on another disk" in str(caught.value)
    assert not (cache / "prepared").exists()
    monkeypatch.setattr(node, "mounts", lambda: [("/", "ext4"), (str(models), "nfs4")])
    with pytest.raises(
        CheckpointError, match=rf"{cache}: not enough disk space for copies of 2 models from network file systems"
    ):
        prepare_node(config_of(models, "base", "expert1"))
    assert not (cache / "copies").exists()


def test_downloads_are_checked_against_the_disk_of_the_hubs_cache(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requested: list[tuple[str, Any]] = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=5 * 2**30))
    monkeypatch.setattr(references.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def listing(name: str, *, revision: str | None, allow_patterns: list[str], dry_run: bool = False) -> Any:
        assert dry_run, "a dry run fetches nothing"
        requested.append((name, revision))
        there = SimpleNamespace(filename="config.json", file_size=2**40, will_download=False)
        adapter = "adapter_model.safetensors" in allow_patterns
        file = SimpleNamespace(
            filename="model.safetensors", file_size=(1 if adapter else 3) * 2**30, will_download=True
        )
        return [there, file]

    monkeypatch.setattr(references, "snapshot_download", listing)
    config = config_of(models, "expert1")
    named = [str(models / "expert1"), "org/a.b@v1", "org/b.c+org/lora.d"]
    with pytest.raises(CheckpointError) as caught:
        prepare_node(replace(config, recipe=linear(*named)))
    said = f"{tmp_path / 'hub'}: not enough disk space for 3 models from the hub: 7.0 GiB needed, 5.0 GiB free"
    assert said in str(caught.value)
    assert requested == [("org/a.b", "v1"), ("org/b.c", None), ("org/lora.d", None)]


def test_nested_recipes_are_sent_as_data(models: Path, tmp_path: Path) -> None:
    """Recipes of a stage and recipe files of the submitting machine, including nested ones."""
    (tmp_path / "a+b").mkdir()
    inner, outer = tmp_path / "a+b" / "inner.yaml", tmp_path / "a+b" / "outer.yaml"
    inner.write_text(json.dumps(linear(str(models / "base"), str(models / "expert1"))))
    outer.write_text(json.dumps(linear("./inner.yaml", str(models / "expert2"))))
    recipe = Recipe.model_validate(linear(f"{outer}+{models / 'lora'}", "stage:one"))
    opener = Opener(tmp_path / "here", recipes={"stage:one": linear("stage:zero"), "stage:zero": linear(str(outer))})
    inputs = opener.inputs(recipe)
    contents = opener.contents(recipe, inputs)
    config = config_of(models, "expert1")
    config = replace(config, recipe=recipe.to_dict(), recipes=opener.nested, inputs=contents)
    assert set(config.recipes) == {str(inner), str(outer), "stage:one", "stage:zero"}
    shutil.rmtree(inner.parent)
    (there,) = Others(tmp_path / "there", config, 1).go()
    assert there["contents"] == contents


def test_a_cache_that_cannot_be_written_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/locks/prepare: cannot be written and locked: Not a directory"):
        prepare_node(config_of(models, "base", cache=tmp_path / "file"))


def test_waiting_for_the_lock_is_reported(models: Path, tmp_path: Path) -> None:
    config, steps = config_of(models, "base"), list[str]()
    holder = Others(tmp_path / "holder", config, 1, "copied")
    holder.go_to_the_stop()

    def progress(step: str, fraction: float) -> None:
        steps.append(step)
        holder.die()

    prepare_node(config, progress)
    assert steps == ["waiting for another worker's models"]
