"""Models of the merge benchmark: SmolLM2-135M with perturbed copies of it, and synthetic models of a given size."""

import json
import shutil
from pathlib import Path

import torch

NAMES = ("one", "two", "three")
MOVED = 0.1  # standard deviation of a parent's changes, as a share of that of its tensor


def perturbed(base: Path, folder: Path) -> list[Path]:
    """Write three bfloat16 fine-tunes of a model, in which every weight is moved; return their folders."""
    from safetensors.torch import load_file, save_file

    made = []
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        target = folder / name
        shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = load_file(base / "model.safetensors")
        for key, tensor in tensors.items():
            spread = MOVED * float(tensor.float().std()) if tensor.numel() > 1 else MOVED
            noise = torch.empty(tensor.shape).normal_(0.0, spread, generator=generator)
            tensors[key] = noise.add_(tensor).to(torch.bfloat16)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        made.append(target)
    return made


def synthetic(folder: Path, gigabytes: int) -> list[Path]:
    """Write a random bfloat16 Llama of about that size with two fine-tunes of it, layers of one size; return all."""
    from benchmarks._random_models.llama import Shape, write_model

    shape = Shape(f"synthetic-{gigabytes}GB", 8 * gigabytes, 2048, 5632, 16, 16, 4096, "bfloat16")
    base = write_model(folder / "base", shape, 0)
    return [base, *(write_model(folder / name, shape, seed, base) for seed, name in enumerate(NAMES[:2], start=1))]


def layers_of(model: Path) -> int:
    """Return the number of layers of a model."""
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])
