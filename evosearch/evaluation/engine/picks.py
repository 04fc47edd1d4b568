"""Log-probabilities and margins of tokens, picked from logits, with a derivative that needs one more copy of them."""

from typing import Any

import torch
from torch import Tensor


def pick(logits: Tensor, read: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P,) log-probabilities and (P,) margins in float64; differentiable in the logits.

    A token's margin is its logit minus the largest logit of any other token: positive if greedy decoding picks it.

    Args:
        logits: (R, V) float32.
        read: (P,) row of each pick.
        token: (P,) token of each pick.
    """
    picked: tuple[Tensor, Tensor] = _Pick.apply(logits, read, token)  # type: ignore[no-untyped-call]
    return picked


class _Pick(torch.autograd.Function):
    """Keeps the logits alone; torch's own operations would keep several tensors of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, read: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(dim=-1)  # (R,)
        best, order = logits.topk(min(2, logits.shape[-1]), dim=-1)  # (R, 2)
        wins = order[read, 0] == token  # (P,)
        rival = torch.where(wins, order[read, -1], order[read, 0])
        own = logits[read, token]
        ctx.save_for_backward(logits, total, read, token, rival)
        ctx.set_materialize_grads(False)
        margin = own - torch.where(wins, best[read, -1], best[read, 0])
        return (own - total[read]).double(), margin.double()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, None, None]:
        logits, total, read, token, rival = ctx.saved_tensors
        of_logprobs, of_margins = (None if slope is None else slope.to(logits.dtype) for slope in slopes)
        if of_logprobs is None:
            grad = torch.zeros_like(logits)
        else:
            weight = torch.zeros_like(total).index_add_(0, read, of_logprobs)  # (R,)
            grad = (logits - total[:, None]).exp_().mul_(-weight[:, None])  # d log p_t / d z = onehot(t) − softmax(z)
            grad.index_put_((read, token), of_logprobs, accumulate=True)
        if of_margins is not None:
            grad.index_put_((read, token), of_margins, accumulate=True)
            grad.index_put_((read, rival), -of_margins, accumulate=True)
        return grad, None, None
