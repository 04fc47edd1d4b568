"""Fixtures that every test uses: no network, one thread, and nothing written to the user's own folders."""

import json
import os
import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from evosearch.devcluster.postgres import Postgres

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, when it is first imported

# Variables that a test may set and must put back; what libraries set for themselves is theirs
OURS = (
    "EVOSEARCH_",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_TOKEN",
    "MLFLOW_TRACKING",
    "PG",
    "PYTHONPATH",
    "RAY_A",
    "AWS_",
    "PATH",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --nightly."""
    parser.addoption("--nightly", action="store_true", help="also run the tests marked nightly (tests/README.md)")


def pytest_configure(config: pytest.Config) -> None:
    """Give hypothesis no deadlines: a busy machine is not a failure."""
    from hypothesis import settings

    settings.register_profile("evosearch", deadline=None)
    settings.load_profile("evosearch")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out nightly tests, and order files by their longest tests.

    A long file that is left for the end keeps one process busy and the other idle.
    """
    if not config.getoption("--nightly"):
        items[:] = [item for item in items if item.get_closest_marker("nightly") is None]
    long = {mark: {item.path for item in items if item.get_closest_marker(mark)} for mark in ("slow", "ray")}
    items.sort(key=lambda item: [item.path not in files for files in long.values()])


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Count test openings in a folder of this test run, not in the user's, also for programs that fixtures start."""
    with pytest.MonkeyPatch.context() as session:
        session.setenv("EVOSEARCH_DATA", str(tmp_path_factory.getbasetemp() / "data"))
        yield


@pytest.fixture(autouse=True)
def _environment_put_back() -> Iterator[None]:
    """Fail a test that leaves one of our environment variables changed."""

    def ours() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(OURS) and name != "PGPASSFILE"}

    before = ours()  # without PGPASSFILE, which the `postgres` fixture sets for the rest of the session
    yield
    assert ours() == before, "the test changed the environment and did not put it back"


@pytest.fixture
def ray_knows_its_mode() -> None:
    """Import Ray, which reads RAY_AUTH_MODE once, before a test changes that variable."""
    import ray  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _trusted_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust task files that tests write, and those in evals/, wherever the suite is that includes them."""
    trusted = (tmp_path_factory.getbasetemp().parent, Path(__file__).parents[1] / "evals")
    with pytest.MonkeyPatch.context() as session:
        session.setenv("EVOSEARCH_TASKS", os.pathsep.join(map(str, trusted)))
        yield


def with_kernels(cache: Path) -> Path:
    """Copy the compiled kernels of the user's own cache into another one, or every process would compile them again."""
    from evosearch.checkpoints.cache.layout import COMPILED
    from evosearch.merging.compiled import library

    if library.library() is not None:
        built = library._built()
        for folder in (cache, cache / COMPILED):  # private, as the program makes them
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (cache / COMPILED / built.name).exists():
            shutil.copy2(built, cache / COMPILED)
    return cache


@pytest.fixture(scope="session")
def zoo_cache() -> Path:
    """The user's own cache folder, with the tiny zoo trained; names in it follow from content."""
    from evosearch.checkpoints.references import default_cache
    from evosearch.zoo.tiny_models import TINY, ensure

    cache = default_cache()
    for name in TINY:
        ensure(name, cache)
    return cache


# --- a small world to search in: a random base, two models near it, two tasks, a spec; milliseconds per candidate ---

CHARACTERS = "abcdefghij=?.\n "
MEAN = {"aggregation": "mean", "higher_is_better": True}


def make_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_models(folder: Path, experts: int = 2, layers: int = 3) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
        base = LlamaForCausalLM(config).eval()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    for index in range(experts + 1):
        name = "base" if index == 0 else f"expert{index}"
        if index:
            base.load_state_dict(
                {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
            )
        base.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def make_suite(folder: Path, counts: dict[str, int] | None = None) -> Path:
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    draw = random.Random(5)
    for name in ("w_choice", "w_generate"):
        rows = []
        for index in range(60):
            word = "".join(draw.choices("abcdefghij", k=4))
            rows.append({"question": f"{word}", "gold": index % 3, "answer": word[0]})
        (tasks / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0, "target_delimiter": ""}
    choice = common | {
        "task": "w_choice",
        "dataset_kwargs": {"data_files": {"test": "w_choice.jsonl"}, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": ["ab", "c", "d"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **MEAN}],
    }
    generate = common | {
        "task": "w_generate",
        "dataset_kwargs": {"data_files": {"test": "w_generate.jsonl"}, "cache_dir": str(folder / "cache")},
        "output_type": "generate_until",
        "doc_to_text": "{{question}}=",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **MEAN}],
    }
    for config in (choice, generate):
        (tasks / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    suite = {
        "name": "world",
        "include": ["tasks"],
        "tasks": [
            {"task": "w_choice", "name": "choice", "metric": "acc", "chance": 0.33},
            {"task": "w_generate", "name": "generate", "metric": "exact_match", "chance": 0.0},
        ],
        "documents": counts or {"search": 8, "validation": 10, "test": 20},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def spec_data(name: str = "world", **changes: Any) -> dict[str, Any]:
    hole = {"low": 0.0, "high": 1.5, "per": "group", "groups": 2, "ends": "shared"}
    return {
        "name": name,
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "./base",
            "models": [
                {"model": "./expert1", "parameters": {"weight": hole}},
                {"model": "./expert2", "parameters": {"weight": hole}},
            ],
        },
        "optimizer": {"name": "cma_es", "population": 6, "sigma": 0.2, "seed": 1, "start": "best_baseline"},
        "suite": "suite.yaml",
        "budget": {"candidates": 18},
        "workers": {"executor": "local", "threads": 1},
        "tracking": {"uri": "jsonl:events.jsonl"},
        "baselines": {"scales": [0.3, 0.6]},
        "promotion": {"finalists": 2},
    } | changes


@pytest.fixture(scope="session")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_models(folder)
    make_suite(folder)
    return folder


@pytest.fixture
def world(_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`world(name=..., **changes)` writes a spec next to the models and returns its path; runs stay in `tmp_path`."""
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(with_kernels(tmp_path / "cache")))

    def write(name: str = "world", **changes: Any) -> Path:
        folder = tmp_path / "specs"
        folder.mkdir(exist_ok=True)
        for entry in _models.iterdir():
            link = folder / entry.name
            if link.exists():
                continue
            if entry.is_dir():
                link.symlink_to(entry)
            else:
                shutil.copy(entry, link)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec_data(name, **changes), sort_keys=False))
        return path

    return write


@pytest.fixture
def evosearch(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`evosearch("run", spec)` → exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from evosearch.cli.main import main

        monkeypatch.setattr(sys, "argv", ["evosearch", *map(str, arguments)])
        capfd.readouterr()  # drop earlier output
        umask = os.umask(0o022)
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:
            os.umask(umask)
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk at each commit, which is most of the time in tests of many commits."""
    from evosearch.search.ledger import store

    configure = store._configure_sqlite

    def quick(connection: Any, record: Any) -> None:
        configure(connection, record)
        connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(store, "_configure_sqlite", quick)


# --- a PostgreSQL server, if its programs are installed; started by the first test that needs it ---


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server; PGPASSFILE is set as long as it runs, for child processes too."""
    from evosearch.devcluster.postgres import Postgres, find_programs

    if find_programs() is None:
        pytest.skip("no PostgreSQL server is installed")
    folder = Path(tempfile.mkdtemp(prefix="evosearch-postgres-"))  # the server's own user cannot read pytest's folders
    server = Postgres(folder)
    with pytest.MonkeyPatch.context() as session:
        session.setenv("PGPASSFILE", str(server.passfile))
        try:
            server.start(durable=False, die_with_parent=True)
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres: "Postgres") -> Iterator[str]:
    """The URL of a new, empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres.create_database(name)
    yield postgres.url(name)
    postgres.start(durable=False, die_with_parent=True)  # if a test stopped it
    postgres.drop_database(name)


# --- a random model of any family: one small config fits all, so a new family is tested without an entry here ---

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`random_model("LlamaForCausalLM", seed=1, near=FOLDER, spread=0.1, shards="20KB", **config)` saves a model.

    Every parameter is random, norms and biases included, and close to those of the model `near` if one is given.
    """
    import torch
    import transformers

    def make(
        architecture: str,
        seed: int = 0,
        near: Path | None = None,
        spread: float = 0.1,
        shards: str = "1GB",
        **changes: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        kind = getattr(transformers, architecture)
        if near is not None:
            model = kind.from_pretrained(near)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = kind(kind.config_class(**SMALL | changes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += spread * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder, max_shard_size=shards)
        return folder

    return make
