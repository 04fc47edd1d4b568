"""From final hidden states to logits, as each family's own forward does it.

The scorer runs a model without its head and applies the head only where logits are read. Some families rescale what
goes into the head or comes out of it; those are known here by their `model_type`, each as its transformers forward has
it. That nothing else is done to logits is not taken on trust: a model's first tokens are compared with its own forward.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from evosearch.errors import CandidateError

Head = Callable[[nn.Module, Tensor, float], Tensor]


def _capped(head: nn.Module, hidden: Tensor, cap: float) -> Tensor:
    logits: Tensor = head(hidden)
    return torch.tanh(logits / cap) * cap  # cap · tanh(logits / cap)   (Gemma 2, arXiv:2408.00118, section 2)


def _multiplied(head: nn.Module, hidden: Tensor, scale: float) -> Tensor:
    logits: Tensor = head(hidden)
    return logits * scale


def _divided(head: nn.Module, hidden: Tensor, scale: float) -> Tensor:
    logits: Tensor = head(hidden)
    return logits / scale


def _divided_before(head: nn.Module, hidden: Tensor, scale: float) -> Tensor:
    logits: Tensor = head(hidden / scale)
    return logits


# model_type → the key of its config, and what is done with it
RESCALED: dict[str, tuple[str, Head]] = {
    "gemma2": ("final_logit_softcapping", _capped),
    "gemma3_text": ("final_logit_softcapping", _capped),
    "vaultgemma": ("final_logit_softcapping", _capped),
    "cohere": ("logit_scale", _multiplied),
    "cohere2": ("logit_scale", _multiplied),
    "hyperclovax": ("logits_scaling", _multiplied),
    "granite": ("logits_scaling", _divided),
    "granitemoe": ("logits_scaling", _divided),
    "granitemoeshared": ("logits_scaling", _divided),
    "minicpm3": ("logits_scaling", _divided_before),
}
_SUSPECT = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")
_NEUTRAL = (None, 1, 1.0)
_CHECK_TOKENS = 8
_checked: WeakSet[Any] = WeakSet()


def body(model: Any) -> Any:
    """The part of a model that makes hidden states: all but the head.

    Raises:
        CandidateError: transformers names no such part of this model.
    """
    found = model.base_model if model.base_model is not model else model.get_decoder()
    if found is None or found is model:
        raise CandidateError("score", f"{type(model).__name__} has no part without its head: it cannot be scored")
    return found


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Float32 logits (N, V) of hidden states (N, hidden size) that left the final norm.

    Raises:
        CandidateError: the config rescales logits in a way that is not known of its family.
    """
    kind = model.config.model_type
    name, rescale = RESCALED.get(kind, ("", _divided))
    for key in _SUSPECT:
        if key != name and getattr(model.config, key, None) not in _NEUTRAL:
            raise CandidateError("score", f"{kind} sets {key}: not supported by the scorer")
    head, value = model.get_output_embeddings(), getattr(model.config, name, None) if name else None
    logits: Tensor = head(hidden) if value is None else rescale(head, hidden, value)
    return logits.float()


@torch.inference_mode()
def check_head(model: Any, input_ids: Tensor) -> None:
    """Hold `head_logits` against the model's own logits on the first tokens of `input_ids` (B, T), once for each model.

    Raises:
        CandidateError: the family's forward does more to its logits than is known here.
    """
    if model in _checked:
        return
    few = input_ids[:1, :_CHECK_TOKENS]
    own = model(input_ids=few, use_cache=False).logits[0].float()  # (T, V)
    hidden = body(model)(input_ids=few, use_cache=False).last_hidden_state[0]
    ours = head_logits(model, hidden)
    if not bool(torch.isfinite(own).all()):
        return  # broken weights: whoever reads a log-likelihood will say so
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 2e-2
    if own.shape != ours.shape or bool((own - ours).abs().max() > tolerance * own.abs().max()):
        what = f"{model.config.model_type} changes its logits after the head in a way that the scorer does not know"
        raise CandidateError("score", what)
    _checked.add(model)
