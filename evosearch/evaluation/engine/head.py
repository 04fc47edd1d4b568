"""Logits from final hidden states, as each family's own forward computes them.

The scorer runs a model without its head and applies the head only at the positions it needs. A family that rescales its
logits declares how (`Family.logits`). `check_head` compares a few tokens with the model's own forward, to detect any
other change of the logits.
"""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from evosearch.checkpoints.families.registry import family_of_model
from evosearch.errors import CandidateError

# Config keys with which transformers' models rescale logits; a key that the family does not declare is an error.
_RESCALING = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")
_NEUTRAL = (None, 1, 1.0)
_CHECK_TOKENS = 8
_checked: WeakSet[Any] = WeakSet()


def body(model: Any) -> Any:
    """Return the part of a model that computes hidden states: everything except the head.

    Raises:
        CandidateError: transformers does not expose such a part of this model.
    """
    found = model.base_model if model.base_model is not model else model.get_decoder()
    if found is None or found is model:
        raise CandidateError("score", f"{type(model).__name__} cannot be run without its head: not supported")
    return found


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return float32 logits (N, V) of hidden states (N, hidden size) after the final norm.

    Raises:
        CandidateError: The config rescales logits in a way that is not supported for its family.
    """
    family = family_of_model(model)
    rescaling = family.logits if family else None
    for key in _RESCALING:
        if (rescaling is None or key != rescaling.key) and getattr(model.config, key, None) not in _NEUTRAL:
            raise CandidateError("score", f"{model.config.model_type} sets {key}, which is not supported")
    logits: Tensor = model.get_output_embeddings()(hidden)
    value = getattr(model.config, rescaling.key, None) if rescaling else None
    return (logits if rescaling is None or value is None else rescaling.apply(logits, value)).float()


@torch.inference_mode()
def check_head(model: Any, input_ids: Tensor) -> None:
    """Compare `head_logits` with the model's own logits on the first tokens of `input_ids` (B, T), once per model.

    Raises:
        CandidateError: The family's forward changes its logits in an unsupported way.
    """
    if model in _checked:
        return
    few = input_ids[:1, :_CHECK_TOKENS]
    own = model(input_ids=few, use_cache=False).logits[0].float()  # (T, V)
    hidden = body(model)(input_ids=few, use_cache=False).last_hidden_state[0]
    ours = head_logits(model, hidden)
    if not bool(torch.isfinite(own).all()):
        return  # broken weights, reported with the first log-likelihood
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 2e-2
    if own.shape != ours.shape or bool((own - ours).abs().max() > tolerance * own.abs().max()):
        what = f"{model.config.model_type} changes its logits after the head in an unsupported way"
        raise CandidateError("score", what)
    _checked.add(model)
