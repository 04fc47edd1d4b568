"""References: paths, schemes, hub ids."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from evosearch.checkpoints import references
from evosearch.checkpoints.references import default_cache, register_resolver, resolve, resolve_adapter, split
from evosearch.errors import CheckpointError


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty hub cache and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_cache_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("EVOSEARCH_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
    monkeypatch.delenv("EVOSEARCH_CACHE")
    assert default_cache() == Path.home() / ".cache" / "evosearch"


def test_paths_and_plain_folder_names(tiny, tmp_path, monkeypatch):
    folder = tiny("model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for reference in (str(folder), "./model", "../" + tmp_path.name + "/model", "~/model", "model"):
        assert resolve(reference, tmp_path / "cache") == folder


def test_folders_without_a_model_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"/absent: no such folder"):
        resolve(str(tmp_path / "absent"), tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder"):
        resolve(str(tmp_path), tmp_path)
    for reference in ("~no-such-user/model", "/" + "long" * 300):
        with pytest.raises(CheckpointError, match="no such folder"):
            resolve(reference, tmp_path)


def test_schemes_are_resolved_and_an_unknown_one_lists_the_known(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "_resolvers", {})
    folder, reported = tiny("model"), []

    def make(rest: str, cache: Path, progress: references.Progress | None) -> Path:
        assert progress is not None
        progress(f"making {rest}", 1.0)
        return folder

    register_resolver("garden", make)
    assert resolve("garden:a/b", tmp_path, lambda step, fraction: reported.append((step, fraction))) == folder
    assert reported == [("making a/b", 1.0)]
    with pytest.raises(CheckpointError, match=r"unknown scheme 'gardn:'\. Known: garden:\. Did you mean 'garden'\?"):
        resolve("gardn:a/b", tmp_path)


@pytest.mark.parametrize(
    ("reference", "pair"),
    [
        ("org/base", ("org/base", None)),
        ("org/base@v1+org/lora@v2", ("org/base@v1", "org/lora@v2")),
        ("/abs/base+/abs/lora", ("/abs/base", "/abs/lora")),
        ("zoo:tiny+./lora", ("zoo:tiny", "./lora")),
    ],
)
def test_references_are_split_at_the_plus(reference, pair):
    assert split(reference) == pair


def test_existing_folders_with_a_plus_are_not_split(tmp_path):
    plus, model, adapter = tmp_path / "a+b", tmp_path / "m+1", tmp_path / "l+1"
    for folder in (plus, model, adapter):
        folder.mkdir()
    assert split(str(plus)) == (str(plus), None)
    assert split(f"{model}+{adapter}") == (str(model), str(adapter))
    assert split(f"org/m+{adapter}") == ("org/m", str(adapter))
    longer = tmp_path / "a+b+adapter"
    assert split(str(longer)) == (str(plus), "adapter")
    longer.mkdir()
    assert split(str(longer)) == (str(longer), None)
    assert split(f"{longer}+{adapter}") == (str(longer), str(adapter))
    (plus / "r.yaml").touch()
    assert split(f"{plus}/r.yaml#step") == (f"{plus}/r.yaml#step", None)
    assert split(f"{plus}/r.yaml+org/lora") == (f"{plus}/r.yaml", "org/lora")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/base+org/one+org/two", r"got 2 adapters\. One model and one adapter.*Merge all but the last.*org/one"),
        ("+org/lora", r"no model before the '\+'"),
        ("org/base+", r"no adapter after the '\+'"),
    ],
)
def test_invalid_model_adapter_pairs_are_rejected(reference, message):
    with pytest.raises(CheckpointError, match=message):
        split(reference)


def test_adapters_and_models_are_distinguished(tiny, tmp_path):
    model, adapter = tiny("model"), tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert resolve_adapter(str(adapter), tmp_path) == adapter
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder.*This is an adapter\. Write model\+/"):
        resolve(str(adapter), tmp_path)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json in this folder.*This is a model\. List it"):
        resolve_adapter(str(model), tmp_path)
    with pytest.raises(CheckpointError, match=r"absent: no such folder\. A folder with adapter_config\.json"):
        resolve_adapter(str(tmp_path / "absent"), tmp_path)


@pytest.mark.parametrize("reference", ["single", "a/b/c", "org/na me"])
def test_invalid_hub_ids_are_rejected_without_a_request(reference, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder, and not a valid hub id"):
        resolve(reference, tmp_path)


def test_a_cached_hub_model_is_used(tiny, tmp_path, offline_hub):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = offline_hub / "models--org--name"
    shutil.copytree(tiny("model"), repository / "snapshots" / commit)
    for revision in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    for reference in ("org/name", "org/name@v1", f"org/name@{commit}"):
        assert resolve(reference, tmp_path) == repository / "snapshots" / commit


def test_an_unreachable_hub_gives_one_error(tmp_path, offline_hub):
    with pytest.raises(CheckpointError, match=r"org/name: not in the hub's cache, and the hub is unreachable"):
        resolve("org/name", tmp_path)


def test_downloads_exclude_pickles_and_pass_the_revision(tiny, tmp_path, monkeypatch):
    folder, requested = tiny("model"), {}

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        requested.update(name=name, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(references, "snapshot_download", download)
    fractions: list[float] = []
    assert resolve("org/name@abc", tmp_path, lambda _, fraction: fractions.append(fraction)) == folder
    assert (requested["name"], requested["revision"], fractions) == ("org/name", "abc", [0.0, 1.0])
    assert not any(
        "bin" in pattern or (pattern.endswith(("*", ".pt", ".py")) and "/" not in pattern)
        for pattern in requested["patterns"]
    )


def test_hub_errors_are_translated(tmp_path, monkeypatch):
    import httpx2
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub"))
    cases = {
        GatedRepoError: "access is restricted",
        RepositoryNotFoundError: "no such model on the hub",
        RevisionNotFoundError: "no such revision",
        HfHubHTTPError: "download failed",
    }
    for kind, message in cases.items():

        def fail(*_: object, kind: type[HfHubHTTPError] = kind, **__: object) -> str:
            raise kind("nope", response=response)

        monkeypatch.setattr(references, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=message):
            resolve("org/name", tmp_path)


class Hub:
    """Fake of the hub's client, which creates the files that match the patterns."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder, self.files, self.requested = folder, files, []

    def download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.folder.mkdir(exist_ok=True)
        for file in self.files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (self.folder / file).write_text("{}")
                self.requested.append(file)
        return str(self.folder)


@pytest.mark.parametrize(
    ("find", "config", "safe", "pickled"),
    [
        (resolve, "config.json", "model.safetensors", "pytorch_model.bin"),
        (resolve_adapter, "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
    ],
)
def test_pickles_are_downloaded_only_if_allowed_and_without_safetensors(
    find, config, safe, pickled, tmp_path, monkeypatch
):
    def fetched(files: tuple[str, ...], allow: bool) -> set[str]:
        hub = Hub(tmp_path / f"{len(files)}{allow}", *files)
        monkeypatch.setattr(references, "snapshot_download", hub.download)
        assert find("org/name", tmp_path, allow_pickle=allow) == hub.folder
        return set(hub.requested)

    assert fetched((config, safe, pickled, "code.py"), True) == {config, safe}
    assert fetched((config, pickled), False) == {config}
    assert fetched((config, pickled), True) == {config, pickled}
