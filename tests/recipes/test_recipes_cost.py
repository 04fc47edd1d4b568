"""Cost estimates from configs, tokenizers and documents, compared with manual counts, torch and file sizes."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from evosearch.checkpoints.reader import Checkpoint
from evosearch.evaluation.engine.runs import depths, distinct_prefixes
from evosearch.evaluation.harness.harness import Harness
from evosearch.preflight.check import check
from evosearch.preflight.cost import GIB, estimate_cost
from evosearch.preflight.counts import counts_of, planned_baselines
from evosearch.preflight.model_size import ModelSize, size_of
from evosearch.preflight.sizes import sizes_of
from evosearch.search.progress import Silent
from evosearch.spec.spec import load_spec

ROOT = Path(__file__).parents[2]
BASE = "mistralai/Mistral-7B-v0.1"
ABEL = "GAIR/Abel-7B-002"
EXPERTS = ("augmxnt/shisa-gamma-7b-v1", "WizardLMTeam/WizardMath-7B-V1.1")
NONE = {"placebo": 0, "training": 0, "gradients": 0}
# config.json of the four models of `japanese_math.yaml`, except for Abel's vocabulary and type
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
EMBEDDINGS = 32000 * 4096
SEVEN_B = 32 * LAYER + 4096 + 2 * EMBEDDINGS  # 7,241,732,096


def flops(size: ModelSize, tokens: int, attended: int) -> float:
    return 2.0 * size.multiplied * tokens + 4.0 * size.layers * size.width * attended


# --- tokens -------------------------------------------------------------------------------------------------------


def test_every_node_sees_itself_and_all_before_it() -> None:
    sequences = [(1, 2, 3), (1, 2, 4, 5), (1, 2), (7,), (7,), ()]
    prefixes = {sequence[: end + 1] for sequence in sequences for end in range(len(sequence))}
    assert distinct_prefixes(sequences) == len(prefixes)
    assert depths(sequences) == sum(map(len, prefixes))
    assert depths([]) == 0


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zoo:tiny/base", BASE, "../models/smollm2/base"])
def test_sizes_from_a_config_equal_those_of_the_files(shipped: Path, name: str) -> None:
    zoo = next((shipped.parent / "cache" / "zoo").iterdir())
    folder = zoo / "base" if name.startswith("zoo:") else Path(name)
    held = sum(torch.Size(info.shape).numel() for info in Checkpoint.open(folder).tensors.values())
    size = size_of(folder)
    assert size.parameters == held
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert size.parameters == size.body + size.head * (1 if tied else 2)
    assert tied == ("smollm2" in name)


def test_of_experts_a_token_meets_some(random_model: Callable[..., Path]) -> None:
    folder = random_model("MixtralForCausalLM", num_experts=4, num_experts_per_tok=1)
    tensors = Checkpoint.open(folder).tensors
    counted = {name: torch.Size(info.shape).numel() for name, info in tensors.items()}
    experts = sum(count for name, count in counted.items() if ".experts." in name)
    outside = sum(count for name, count in counted.items() if ".layers." in name or name == "model.norm.weight")
    assert size_of(folder).body == outside - experts * 3 // 4


def test_torch_counts_the_same_arithmetic(shipped: Path) -> None:
    """PyTorch counts every matrix product of a forward pass; its attention covers all positions."""
    folder, length = Path(BASE), 7
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager")
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, length, dtype=torch.long))
    size = size_of(folder)
    norms = 2 * size.layers * 16 + 16  # not in matrix products
    assert counter.get_total_flops() == flops(size, length, length * length) - 2 * norms * length


def test_an_adapter_is_small_on_disk_and_not_in_memory(shipped: Path) -> None:
    found = sizes_of(load_spec(shipped / "lora_library.yaml"), Silent())
    adapters = [name for name in found.stored if name.startswith("predibase/")]
    assert len(adapters) == 8
    for name in adapters:
        assert found.stored[name] == (Path(name) / "adapter_model.safetensors").stat().st_size
        # Queries 16 × 16 and values 16 → 8 of four layers, in float32
        assert found.held[f"{BASE}+{name}"] == 4 * 4 * (16 * 16 + 16 * 8)
    assert len(found.held) == 9  # the base once
    assert found.read == 9 * found.held[BASE]  # already float32, so adapters do not widen it


# --- searches -----------------------------------------------------------------------------------------------


def test_the_groups_by_hand(shipped: Path) -> None:
    spec = load_spec(shipped / "groups.yaml")
    # The stand-ins have random weights
    result = check(shipped / "groups.yaml", dry_run=False, watcher=Silent(), allow_unrelated=True)
    assert result.ok
    cost, tokens = result.forecast["cost"], result.forecast["tokens"]
    size = sizes_of(spec, Silent()).output
    # Base, four parents, uniform, ten scales, and the answer; three scales with seven finalists; one scale at the end
    expected = {"candidates": 96, "search": 16 + 1, "validation": 6 + 1 + 6 + 3, "test": 1 + 6 + 1}
    assert cost["evaluations"] == expected | NONE

    def run(split: str) -> int:
        return int(tokens[split]["distinct"] + tokens[split]["generated_at_most"])

    def arithmetic(split: str) -> float:
        return flops(size, run(split), tokens[split]["attended"] + tokens[split]["attended_at_most"])

    assert cost["tokens"] == (96 + 17) * run("search") + 16 * run("validation") + 8 * run("test")
    assert cost["flops_per_candidate"] == pytest.approx(arithmetic("search"))
    assert cost["flops"] == pytest.approx(
        113 * arithmetic("search") + 16 * arithmetic("validation") + 8 * arithmetic("test")
    )
    assert cost["device_gib"]["resident"] * GIB == 4 * size.parameters
    assert cost["read_gib_per_candidate"] == cost["disk_gib"]  # all five models, each once
    assert check(shipped / "groups.yaml", False, Silent(), weights=False).forecast == result.forecast


def test_parts_and_other_ends_of_a_search(shipped: Path) -> None:
    path = shipped / "groups.yaml"
    data, harness = yaml.safe_load(path.read_text()), Harness(load_spec(path).suite)

    def evaluations(**changes: Any) -> dict[str, int] | None:
        path.write_text(yaml.safe_dump(data | changes))
        found: dict[str, int] | None = estimate_cost(load_spec(path), harness, Silent())["cost"]["evaluations"]
        return found

    assert evaluations(budget={"hours": 2}) is None
    items = evaluations(budget={"items": 100})  # six documents of each of four tasks
    assert items is not None
    assert items["candidates"] == 4  # complete ones
    assert items["validation"] == 4 + 1 + 6 + 3  # at most as many finalists as candidates, and the answer
    parts = evaluations(search_minibatches=3)
    assert parts is not None
    assert parts["search"] == 16 + 2 * 6 + 1
    steps = evaluations(optimizer={"name": "gradient", "population": 2, "batch": 12}, budget={"items": 100})
    assert steps is not None
    assert (steps["candidates"], steps["gradients"]) == (5, 5)  # six documents each, which count three times
    assert (
        steps["search"] == 9 + 3
    )  # fewer scales fit this budget; answers: six documents of a task are too few to hold some back
    halved = evaluations(search_minibatches=3, budget={"items": 100})
    assert halved is not None
    assert halved["candidates"] == 12  # of eight items each


def test_a_shard_costs_three_times_its_forward_passes_and_has_activations_in_memory(shipped: Path) -> None:
    path = shipped / "groups.yaml"
    data, harness = yaml.safe_load(path.read_text()), Harness(load_spec(path).suite)
    scored = estimate_cost(load_spec(path), harness, Silent())
    steps = {"name": "gradient", "batch": 12, "population": 2}
    path.write_text(yaml.safe_dump(data | {"optimizer": steps}))
    found = estimate_cost(load_spec(path), harness, Silent())
    size, tokens = sizes_of(load_spec(path), Silent()).output, found["tokens"]["search"]
    quarter = flops(size, tokens["distinct"] / 4, tokens["attended"] / 4)  # 6 of 24 documents
    assert found["cost"]["flops_per_candidate"] == pytest.approx(3 * quarter, rel=0.01)
    one, other = found["cost"]["device_gib"], scored["cost"]["device_gib"]
    more = {name: one[name] * GIB for name in one.keys() - other.keys()}
    assert more == {"activations": 8 * GIB, "gradient": 4 * size.largest}
    assert one["needed"] == pytest.approx(other["needed"] + sum(more.values()) / GIB)
    assert size.largest <= size.parameters


@pytest.mark.parametrize(
    ("width", "layers", "inner", "billions"), [(2048, 16, 8192, 1.1), (4096, 32, 14336, 7.2), (8192, 80, 28672, 69.0)]
)
def test_gradients_are_forecast_from_configs_of_1b_7b_and_70b(
    width: int, layers: int, inner: int, billions: float, shipped: Path, tmp_path: Path
) -> None:
    """From configs and tokenizers: no weights of this size exist."""
    shape = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    for name in (BASE, *EXPERTS):
        shutil.copytree(name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        (tmp_path / name / "config.json").write_text(json.dumps(MISTRAL | shape))
    weight = {"weight": {"low": 0.0, "high": 1.0, "per": "tensor"}}
    experts = [{"model": str(tmp_path / name), "parameters": weight} for name in EXPERTS]
    path = shipped / "groups.yaml"
    data = yaml.safe_load(path.read_text())
    data["recipe"] |= {"base_model": str(tmp_path / BASE), "models": experts, "dtype": "bfloat16"}
    costs = {}
    for name, optimizer in (("scored", {}), ("steps", {"name": "gradient", "batch": 12, "population": 1})):
        path.write_text(yaml.safe_dump(data | {"optimizer": optimizer or {"name": "cma_es"}}))
        costs[name] = estimate_cost(load_spec(path), Harness(load_spec(path).suite), Silent())["cost"]
    memory, scored = costs["steps"]["device_gib"], costs["scored"]["device_gib"]
    assert costs["steps"]["parameters"] == pytest.approx(billions * 1e9, rel=0.05)
    assert memory["resident"] * GIB == 2 * costs["steps"]["parameters"]
    assert memory["needed"] == pytest.approx(scored["needed"] + 8 + 4 * 32000 * width / GIB), "the embeddings' gradient"
    for device, seconds in costs["steps"]["seconds_per_candidate"].items():  # 12 documents, forward and backward
        one = costs["scored"]["seconds_per_candidate"][device]
        assert 0 < seconds < 3 * one


def test_stages_are_added_up(shipped: Path) -> None:
    result = check(shipped / "hybrid.yaml", False, Silent(), weights=False)
    assert result.problems == ()
    cost = result.forecast["cost"]
    weights, route = (cost["stages"][name] for name in ("weights", "route"))
    assert cost["evaluations"]["candidates"] == 96
    assert (weights["evaluations"]["test"], cost["evaluations"]["test"]) == (0, route["evaluations"]["test"])
    for key in ("flops", "tokens"):
        assert cost[key] == weights[key] + route[key]
    deeper = weights["parameters"] + 3 * (size_layer := (16384 * 2 + 2 * 8192 + 3 * 128 * 352 + 2 * 128))
    assert route["parameters"] == pytest.approx(deeper, abs=size_layer / 100)  # nine hops for six layers
    assert cost["parameters"] == route["parameters"]


def test_a_winner_is_a_model_of_its_own(shipped: Path) -> None:
    """A route may also name models as large as the winner, and the winner is merged to disk, too."""
    path = shipped / "hybrid.yaml"
    data = yaml.safe_load(path.read_text())
    route = data["stages"][1]["recipe"]["routing"]
    route["models"] = ["stage:weights", data["stages"][0]["recipe"]["base_model"]]
    path.write_text(yaml.safe_dump(data))
    result = check(path, False, Silent(), weights=False)
    assert result.problems == ()
    stages = result.forecast["cost"]["stages"]
    own = 4 * stages["weights"]["parameters"] / GIB
    assert stages["route"]["disk_gib"] == pytest.approx(stages["weights"]["disk_gib"] + own)
    route["models"] = ["stage:weights", "stage:weights"]
    path.write_text(yaml.safe_dump(data))
    (problem,) = check(path, False, Silent(), weights=False).problems
    assert problem.what == "'stage:weights' is named twice"


@pytest.fixture
def seven_b(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of specs; the working directory has 7B configs, tokenizers and documents, but no weights."""
    hub = tmp_path / "hub"
    for name in (BASE, *EXPERTS, ABEL):
        shutil.copytree(name, hub / name, ignore=shutil.ignore_patterns("*.safetensors"))
        changes = {"vocab_size": 32032, "torch_dtype": "float32"} if name == ABEL else {}
        (hub / name / "config.json").write_text(json.dumps(MISTRAL | changes))
    for task in Path("predibase").iterdir():
        home = hub / "predibase" / task.name
        home.mkdir(parents=True)
        config = json.loads((task / "adapter_config.json").read_text()) | {"r": 8}
        (home / "adapter_config.json").write_text(json.dumps(config))
    words = ["".join(letters) for letters in combinations("あいうえおかきくけこ", 4)]  # 210 distinct words
    questions = [f"{' '.join(words[n : n + 12])}。りんごが{n}個あります。" for n in range(0, 192, 3)]
    rows = [json.dumps({"question": text, "answer_number": n, "answer": None}) for n, text in enumerate(questions)]
    for name, own in (("SakanaAI/gsm8k-ja-test_250-1319", rows[:40]), ("juletxara/mgsm", rows[40:])):
        (hub / name).mkdir(parents=True)
        (hub / name / "test.jsonl").write_text("\n".join(own))
    files = [{"split": split, "path": "test.jsonl"} for split in ("train", "test")]
    card = yaml.safe_dump({"configs": [{"config_name": "ja", "data_files": files}]})
    (hub / "juletxara/mgsm/README.md").write_text(f"---\n{card}---\n")
    monkeypatch.chdir(hub)
    return shipped


def test_the_japanese_merge_before_anything_is_fetched(seven_b: Path) -> None:
    """From configs and tokenizers: the folders contain no weights."""
    assert not list(Path().rglob("*.safetensors"))
    result = check(seven_b / "japanese_math.yaml", dry_run=True, watcher=Silent(), weights=False)
    assert result.problems == ()
    assert result.memory == {}
    assert any("no weights were fetched" in note for note in result.notes)
    cost, tokens = result.forecast["cost"], result.forecast["tokens"]
    assert cost["parameters"] == SEVEN_B == 7_241_732_096
    wider = SEVEN_B + 2 * 32 * 4096
    assert cost["disk_gib"] * GIB == 3 * 2 * SEVEN_B + 4 * wider
    assert cost["read_gib_per_candidate"] == cost["disk_gib"]
    memory = {name: size * GIB for name, size in cost["device_gib"].items()}
    assert memory["resident"] == 2 * SEVEN_B
    assert memory["cache"] == 131072 * 32 * 2 * 8 * 128 * 2  # tokens · layers · keys and values · heads · size · bytes
    assert memory["logits"] == 2048 * 32000 * 4
    assert cost["evaluations"] == {"candidates": 1000, "search": 16, "validation": 17, "test": 7} | NONE
    assert tokens["search"]["generated_at_most"] == 6 * 512
    # Generation reads all weights in each of 512 steps, at half the bandwidth: most of a candidate's time
    multiplied = 2 * (SEVEN_B - EMBEDDINGS)
    for device, bandwidth, link in (("A100 80GB", 2.04e12, 32e9), ("H100 80GB", 3.35e12, 64e9)):
        writing, merging = 512 * multiplied / (0.5 * bandwidth), cost["read_gib_per_candidate"] * GIB / link
        assert cost["seconds_per_candidate"][device] == pytest.approx(writing + merging, rel=0.05)
        assert cost["gpu_hours"][device] == pytest.approx(
            (1038 * cost["seconds_per_candidate"][device]) / 3600, rel=0.05
        )


def test_eight_adapters_take_little_more_than_their_base(seven_b: Path) -> None:
    spec = load_spec(seven_b / "lora_library.yaml")
    found = sizes_of(spec, Silent())
    assert sum(found.stored.values()) - 2 * SEVEN_B == 8 * 4 * 32 * 8 * (
        4096 + 4096 + 4096 + 1024
    )  # A and B in float32
    assert found.held[f"{BASE}+predibase/gsm8k"] == 4 * 32 * (4096 * 4096 + 4096 * 1024)
    counts = counts_of(spec, planned_baselines(spec), 100)
    assert counts is not None
    assert (counts.candidates, counts.search) == (360, 20 + 2 * 4)


def test_the_command_line_prints_two_lines(
    seven_b: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evosearch.cli.main import main

    monkeypatch.setattr("sys.argv", ["evosearch", "check", str(seven_b / "japanese_math.yaml"), "--no-weights"])
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main())
    said = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code
    assert "7,241,732,096 parameters; 67.4 GiB of models on disk" in said
    assert re.search(r"about \d+ h \d+ min on one H100 80GB \(40% of a GPU.s peak", said)


def test_a_missing_model_is_one_problem(shipped: Path) -> None:
    path = shipped / "ties.yaml"
    path.write_text(path.read_text().replace("base_model: zoo:tiny/base", "base_model: ./nowhere"))
    result = check(path, False, Silent(), weights=False)
    assert not result.ok
    assert [problem.what for problem in result.problems] == ["no such folder"]


def test_a_recipe_as_a_model_and_stacked_layers(shipped: Path) -> None:
    """A nested recipe is merged into the cache in its own type; slices determine the output's depth."""
    slices = [{"sources": [{"model": "zoo:tiny/sort", "layer_range": [0, end]}]} for end in (6, 3)]
    inner = {"merge_method": "passthrough", "slices": slices, "out_dtype": "bfloat16"}
    (shipped / "inner.yaml").write_text(yaml.safe_dump(inner))
    path = shipped / "ties.yaml"
    data = yaml.safe_load(path.read_text())
    data["recipe"] = {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": "./inner.yaml", "layer_range": [0, 9], "parameters": {"weight": {"low": 0, "high": 1}}}
                ]
            }
        ],
    }
    path.write_text(yaml.safe_dump(data))
    found = sizes_of(load_spec(path), Silent())
    assert found.output.layers == 9
    deeper = size_of(found.folder).with_layers(9)
    assert found.output == deeper
    assert found.stored[str(shipped / "inner.yaml")] == 2 * deeper.parameters
    assert found.stored["zoo:tiny/sort"] == next(found.folder.glob("*.safetensors")).stat().st_size
