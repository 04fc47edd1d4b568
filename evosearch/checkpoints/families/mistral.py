"""Mistral: Llama's tensors without biases; a sliding window, if any, is the same in every layer."""

from evosearch.checkpoints.families.parts import Part, family, llama_layer
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    return llama_layer()


FAMILY = family("MistralForCausalLM", _layer)
