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


def test_the_cache_is_where_the_environment_says(monkeypatch):
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


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(CheckpointError, match=r"/absent: no such folder"):
        resolve(str(tmp_path / "absent"), tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder"):
        resolve(str(tmp_path), tmp_path)
    for reference in ("~no-such-user/model", "/" + "long" * 300):
        with pytest.raises(CheckpointError, match="no such folder"):
            resolve(reference, tmp_path)


def test_a_registered_scheme_is_asked_and_an_unknown_one_lists_them(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "_resolvers", {})
    folder, told = tiny("model"), []

    def make(rest: str, cache: Path, progress: references.Progress | None) -> Path:
        assert progress is not None
        progress(f"making {rest}", 1.0)
        return folder

    register_resolver("garden", make)
    assert resolve("garden:a/b", tmp_path, lambda what, part: told.append((what, part))) == folder
    assert told == [("making a/b", 1.0)]
    with pytest.raises(CheckpointError, match=r"unknown scheme 'gardn:'\. Known: garden:\. Did you mean 'garden'\?"):
        resolve("gardn:a/b", tmp_path)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("org/base", ("org/base", None)),
        ("org/base@v1+org/lora@v2", ("org/base@v1", "org/lora@v2")),
        ("/abs/base+/abs/lora", ("/abs/base", "/abs/lora")),
        ("zoo:tiny+./lora", ("zoo:tiny", "./lora")),
    ],
)
def test_references_are_split_at_the_plus(reference, parts):
    assert split(reference) == parts


def test_folders_with_a_plus_in_their_name_win(tmp_path):
    whole, model, adapter = tmp_path / "a+b", tmp_path / "m+1", tmp_path / "l+1"
    for folder in (whole, model, adapter):
        folder.mkdir()
    assert split(str(whole)) == (str(whole), None)
    assert split(f"{model}+{adapter}") == (str(model), str(adapter))
    assert split(f"org/m+{adapter}") == ("org/m", str(adapter))
    longer = tmp_path / "a+b+adapter"
    assert split(str(longer)) == (str(whole), "adapter")
    longer.mkdir()
    assert split(str(longer)) == (str(longer), None)
    assert split(f"{longer}+{adapter}") == (str(longer), str(adapter))
    (whole / "r.yaml").touch()
    assert split(f"{whole}/r.yaml#step") == (f"{whole}/r.yaml#step", None)
    assert split(f"{whole}/r.yaml+org/lora") == (f"{whole}/r.yaml", "org/lora")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/base+org/one+org/two", r"got 2 adapters\. One model and one adapter.*Merge all but the last.*org/one"),
        ("+org/lora", r"no model before the '\+'"),
        ("org/base+", r"no adapter after the '\+'"),
    ],
)
def test_references_that_are_no_pair_are_refused(reference, message):
    with pytest.raises(CheckpointError, match=message):
        split(reference)


def test_adapters_and_models_are_told_apart(tiny, tmp_path):
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
def test_what_can_be_no_hub_id_never_reaches_the_hub(reference, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder, and not a valid hub id"):
        resolve(reference, tmp_path)


def test_a_hub_model_is_taken_from_the_hubs_cache(tiny, tmp_path, offline_hub):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = offline_hub / "models--org--name"
    shutil.copytree(tiny("model"), repository / "snapshots" / commit)
    for revision in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    for reference in ("org/name", "org/name@v1", f"org/name@{commit}"):
        assert resolve(reference, tmp_path) == repository / "snapshots" / commit


def test_an_unreachable_hub_is_one_error(tmp_path, offline_hub):
    with pytest.raises(CheckpointError, match=r"org/name: not in the hub's cache, and the hub is unreachable"):
        resolve("org/name", tmp_path)


def test_downloads_ask_for_no_pickles_and_pass_the_revision_on(tiny, tmp_path, monkeypatch):
    folder, asked = tiny("model"), {}

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(references, "snapshot_download", download)
    told: list[float] = []
    assert resolve("org/name@abc", tmp_path, lambda _, part: told.append(part)) == folder
    assert (asked["name"], asked["revision"], told) == ("org/name", "abc", [0.0, 1.0])
    assert not any(
        "bin" in pattern or (pattern.endswith(("*", ".pt", ".py")) and "/" not in pattern)
        for pattern in asked["patterns"]
    )


def test_what_the_hub_answers_is_told_in_our_words(tmp_path, monkeypatch):
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
        self.folder, self.files, self.asked = folder, files, []

    def download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.folder.mkdir(exist_ok=True)
        for file in self.files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (self.folder / file).write_text("{}")
                self.asked.append(file)
        return str(self.folder)


@pytest.mark.parametrize(
    ("find", "config", "safe", "pickled"),
    [
        (resolve, "config.json", "model.safetensors", "pytorch_model.bin"),
        (resolve_adapter, "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
    ],
)
def test_pickles_are_fetched_only_where_allowed_and_alone(find, config, safe, pickled, tmp_path, monkeypatch):
    def fetched(files: tuple[str, ...], allow: bool) -> set[str]:
        hub = Hub(tmp_path / f"{len(files)}{allow}", *files)
        monkeypatch.setattr(references, "snapshot_download", hub.download)
        assert find("org/name", tmp_path, allow_pickle=allow) == hub.folder
        return set(hub.asked)

    assert fetched((config, safe, pickled, "code.py"), True) == {config, safe}
    assert fetched((config, pickled), False) == {config}
    assert fetched((config, pickled), True) == {config, pickled}
