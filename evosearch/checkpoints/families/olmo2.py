"""OLMo 2: norms after attention and MLP instead of before them, and QK norms over all heads together."""

from evosearch.checkpoints.families.parts import QK_NORMS, Part, family, normed_after_layer, option
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    return normed_after_layer(bias=option(config, "attention_bias", False), qk_norms=QK_NORMS)


FAMILY = family("Olmo2ForCausalLM", _layer)
