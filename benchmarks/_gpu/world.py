"""Random models and a suite of generated questions for the GPU checks; nothing is downloaded."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evosearch.checkpoints.reader import Checkpoint
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.execution.worker_config import WorkerConfig
from evosearch.merging.registry import specs
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe.sample import Sample
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec

LETTERS = "abcdefghij"
SAMPLE = Sample(text="drawn tokens")
WITHIN = 0.4  # of a parameter's bounds: the value of the checks
_MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True)
class Size:
    """Size of the models and of the suite."""

    hidden: int = 32
    inner: int = 48
    layers: int = 4
    documents: int = 60


TINY = Size()
ON_A_GPU = Size(512, 1536, 8, 400)
WIDE = Size(32, 8192, 1, 240)  # activations need far more memory than the weights


@dataclass(frozen=True)
class World:
    """Folder with a random base and two perturbed models, and their suite."""

    folder: Path
    suite: Suite

    @property
    def models(self) -> list[Path]:
        """Folders of the base and the two models."""
        return [self.folder / name for name in ("base", "one", "two")]

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Folder → checkpoint of every model, with statistics over drawn tokens."""
        found = {str(folder): Checkpoint.open(folder) for folder in self.models}
        draw = random.Random(5)
        texts = tuple(tuple(draw.choices(range(4, 12), k=24)) for _ in range(16))
        samples = SampledMoments(self.folder / "cache", "cpu", known={SAMPLE.key: texts})
        samples.attach(SAMPLE, found)
        for name, spec in specs().items():
            if spec.sequential:  # its statistics are those of a merge
                samples.attach(SAMPLE, found, self.recipe(name, **settings(spec)))
        return found

    def harness(self) -> Harness:
        """Harness of the suite."""
        return Harness(self.suite)

    def recipe(self, method: str = "task_arithmetic", dtype: str = "float32", **parameters: Any) -> Recipe:
        """Recipe that merges the two models, or only the first one, with a base if the method uses one."""
        base, *others = self.models
        spec = specs()[method]
        listed = others[: spec.models[1]]
        data = {
            "merge_method": method,
            "models": [{"model": str(model)} for model in listed],
            "parameters": parameters,
            "dtype": dtype,
        }
        if spec.takes_base:
            data |= {"base_model": str(base)}
        if spec.statistic:
            data |= {"sample": SAMPLE.model_dump(exclude_defaults=True)}
        return Recipe.model_validate(data)

    def config(self, device: str, **changes: Any) -> WorkerConfig:
        """Configuration of a single-threaded worker; `changes` replace its fields."""
        recipe = self.recipe(weight=0.5)
        given: dict[str, Any] = {"device": device, "threads": 1} | changes
        suite = self.suite.model_dump(mode="json")
        return WorkerConfig(recipe=recipe.to_dict(), suite=suite, cache=self.folder / "cache", **given)


def settings(spec: MethodSpec) -> dict[str, Any]:
    """Return a value for every number of a method, inside its bounds."""
    numbers = {name: param for name, param in spec.parameters.items() if param.kind == "float"}
    return {
        name: param.low + WITHIN * (param.high - param.low)
        for name, param in numbers.items()
        if param.low is not None and param.high is not None
    }


def make_world(folder: Path, size: Size) -> World:
    """Create the models and the suite in a new folder."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=max(size.hidden // 64, 4),
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5 / size.hidden**0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for name in ("base", "one", "two"):
            spread = 0.0 if name == "base" else 0.2 / size.hidden**0.5
            model.load_state_dict({key: value + spread * torch.randn_like(value) for key, value in state.items()})
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return World(folder, load_suite(_suite(folder, size.documents)))


def _tokenizer() -> Any:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *LETTERS, *"=?\n "])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _suite(folder: Path, documents: int) -> Path:
    tasks, draw = folder / "tasks", random.Random(7)
    tasks.mkdir()
    for task in ("g_choice", "g_generate"):
        rows = []
        for index in range(documents):
            text = "".join(draw.choices(LETTERS, k=38))
            rows.append({"question": text, "gold": index % 3, "answer": text[0]})
        (tasks / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
    }
    choice = common | {
        "task": "g_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": ["ab", "c", "d"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **_MEAN}],
    }
    generate = common | {
        "task": "g_generate",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}=",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **_MEAN}],
    }
    for config in (choice, generate):
        files = {"test": f"{config['task']}.jsonl"}
        config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "rows")}
        (tasks / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    suite = {
        "name": "gpu_check",
        "include": ["tasks"],
        "tasks": [
            {"task": "g_choice", "metric": "acc", "chance": 0.33},
            {"task": "g_generate", "metric": "exact_match", "chance": 0.0},
        ],
        "documents": {"search": 4, "validation": 4, "test": documents - 10},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path
