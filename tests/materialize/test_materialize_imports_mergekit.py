"""Imported genomes: mergekit-evolve's genotype, put into the imported search space, gives mergekit's weights.

mergekit is told to compute in float32 too: in bfloat16, as its own searches do, it rounds every intermediate step.
"""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.search.progress import Silent
from evosearch.search.space.space import SearchSpace
from evosearch.service.import_spec import import_spec
from evosearch.spec.spec import load_spec

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition
    from mergekit.merge import MergeOptions, run_merge

TASKS = Path(__file__).parents[2] / "evals" / "tiny"
Family = dict[str, Checkpoint]

GENOMES = {
    "linear": {"merge_method": "linear", "layer_granularity": 2},
    "task_arithmetic": {"merge_method": "task_arithmetic", "layer_granularity": 2, "filters": ["self_attn", "mlp"]},
    "negative": {"merge_method": "task_arithmetic", "allow_negative_weights": True, "normalize": False},
    "ties": {"merge_method": "ties", "layer_granularity": 1, "filters": ["mlp"]},
    "smooth": {"merge_method": "ties", "layer_granularity": 2, "smooth": True},
    "dare_ties": {"merge_method": "dare_ties", "layer_granularity": 4},
}


@pytest.mark.parametrize("name", GENOMES)
def test_a_genotype_gives_mergekits_weights(name: str, untied: Family, tmp_path: Path) -> None:
    base, a, b, c = untied
    definition = {"models": [a, b, c]} | GENOMES[name]
    if name != "linear":
        definition["base_model"] = base
    genome = ModelGenome(ModelGenomeDefinition.model_validate(definition))
    genotype = _genotype(genome, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        config = genome.genotype_merge_config(genotype)
        config = config.model_copy(update={"dtype": "float32", "out_dtype": "bfloat16"})
        run_merge(config, str(tmp_path / "theirs"), options)
    (tmp_path / "evolve.yaml").write_text(yaml.safe_dump({"genome": definition, "tasks": ["tiny_reverse"]}))
    report = import_spec(tmp_path / "evolve.yaml", tmp_path / "search.yaml", Silent(), TASKS)
    spec = load_spec(Path(report.out))
    space = SearchSpace.from_template(spec.template, untied[base].shape, specs(), spec.where)
    # [run of layers, model, filter, parameter] → order of the holes: model, parameter by name, filter, run of layers
    numbers = genotype.flip(-1).permute(1, 3, 2, 0).flatten().tolist()
    recipe = space.fill({d.name: value for d, value in zip(space.dimensions, numbers, strict=True)})
    write_checkpoint(recipe, untied, tmp_path / "ours", base if recipe.base_model else a)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = {k: v for file in (tmp_path / "theirs").glob("*.safetensors") for k, v in load_file(file).items()}
    assert ours.keys() == theirs.keys()
    outside = ("lm_head.weight", "model.norm.weight") if name == "smooth" else ()  # said by the import
    compared = [key for key in ours if key not in outside]
    assert all(ours[key].dtype == theirs[key].dtype == torch.bfloat16 for key in compared)
    unequal = sum(int((ours[key] != theirs[key]).sum()) for key in compared)
    if name in ("negative", "ties", "dare_ties"):
        assert unequal == 0
    else:  # sums in another order may be rounded to the next number
        assert unequal <= 1e-4 * sum(ours[key].numel() for key in compared)
        for key in compared:
            torch.testing.assert_close(ours[key].float(), theirs[key].float(), rtol=2**-7, atol=1e-6)


def _genotype(genome: ModelGenome, name: str) -> torch.Tensor:
    shape = genome.initial_genotype().shape
    drawn = 0.05 + 0.9 * torch.rand(shape, generator=torch.Generator().manual_seed(3))
    if name == "negative":
        drawn = drawn - 0.5
    if name == "dare_ties":
        drawn[..., 1] = 1.0  # without masks, which no two programs draw alike
    return drawn
