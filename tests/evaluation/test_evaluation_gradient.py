"""Gradients in every execution mode, with cached prefixes, compared with plain autograd over single sequences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine import gradient
from evosearch.evaluation.engine.activations import activations_of
from evosearch.evaluation.engine.gradient import differentiate
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import MODES, ScoreOptions

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 2.0,
}
WINDOW: dict[str, Any] = {"sliding_window": 5}
BY_LAYER = ["sliding_attention", "full_attention", "sliding_attention"]
NARROW: dict[str, Any] = {"batch_tokens": 24, "cached_tokens": 400}  # several passes, and prefixes in the cache


def build(architecture: str, **changes: Any) -> Any:
    """A random model, including norms and biases."""
    kind = getattr(transformers, architecture)
    known = kind.config_class()
    values = {key: value for key, value in SMALL.items() if hasattr(known, key) or "softcapping" not in key}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**values | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.15 * torch.randn(parameter.shape)
    return model.eval()


def requests() -> list[LoglikelihoodRequest]:
    """Few-shot prompts with one prefix and choices, prefixes of other sequences, texts, and single tokens."""
    draw = np.random.default_rng(1)

    def some(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in draw.integers(2, 40, count))

    shots = some(31)
    found = [shots, shots[:11], some(1), some(1), some(70)]
    for _ in range(4):
        question = shots + some(int(draw.integers(2, 9)))
        found += [question + some(int(size)) for size in draw.integers(1, 6, 3)]
    for _ in range(3):
        question = some(int(draw.integers(3, 30)))
        found += [question, question + some(2), question + some(7)]
    sizes = [len(one) if index in (0, 4) else min(1 + index % 4, len(one)) for index, one in enumerate(found)]
    return [
        LoglikelihoodRequest(one, (*one[len(one) - size + 1 :], 7 + index % 5))
        for index, (one, size) in enumerate(zip(found, sizes, strict=True))
    ]


ASKED = requests()
ITEMS = np.arange(len(ASKED)) // 3  # three requests an item, which are in several passes
COUNT = int(ITEMS.max()) + 1
LITTLE = {**NARROW, "activation_limit": 1_000_000}  # layers must be recomputed
LEAST = {**NARROW, "activation_limit": 50_000}  # and items must be divided
MODELS = {
    "llama": lambda: build("LlamaForCausalLM"),
    "gpt2": lambda: build("GPT2LMHeadModel"),
    "gpt_neox": lambda: build("GPTNeoXForCausalLM"),
    "qwen2, tied": lambda: build("Qwen2ForCausalLM", tie_word_embeddings=True),
    "gemma2, capped, windows": lambda: build("Gemma2ForCausalLM", layer_types=BY_LAYER, **WINDOW),
    "mistral, windows": lambda: build("MistralForCausalLM", **WINDOW),
    "mixtral, experts": lambda: build("MixtralForCausalLM"),
}
Expected = tuple[Any, np.ndarray, dict[str, Tensor]]


def values(lls: Tensor, margins: Tensor) -> Tensor:
    """An item's value depends on the log-likelihoods and margins of all of its requests."""
    zeros, item = torch.zeros(COUNT, dtype=torch.float64), torch.from_numpy(ITEMS)
    sums = zeros.index_add(0, item, lls / 20)
    return sums.exp() + torch.sigmoid(zeros.index_add(0, item, margins))


@pytest.fixture(scope="module", params=MODELS)
def expected(request: pytest.FixtureRequest) -> Expected:
    """A model with the values and gradients of plain autograd, one sequence at a time."""
    model = MODELS[request.param]()
    lls, margins = [], []
    for one in ASKED:
        logits = model(input_ids=torch.tensor([one.inputs]), use_cache=False).logits[0, -len(one.targets) :].double()
        targets = torch.tensor(one.targets)[:, None]
        lls.append(logits.log_softmax(-1).gather(1, targets).sum())
        rivals = logits.scatter(1, targets, -torch.inf).max(dim=-1).values
        margins.append((logits.gather(1, targets)[:, 0] - rivals).min())
    found = values(torch.stack(lls), torch.stack(margins))
    found.sum().backward()
    grads = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    return model, found.detach().numpy(), grads


@pytest.mark.parametrize(
    "options", [{}, NARROW, LITTLE, LEAST], ids=["one pass", "prefixes", "recomputed layers", "divided items"]
)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_gradient_of_plain_autograd(expected: Expected, mode: str, options: Any) -> None:
    model, wanted, grads = expected
    model.zero_grad()
    plan = lay_out(ASKED, ScoreOptions(modes=(mode,), **options))
    found = differentiate(model, plan, ITEMS, values)
    assert found.mode == mode
    assert found.recomputed or options not in (LITTLE, LEAST) or mode == "rows", "half of the rows may fit"
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.lls, score_loglikelihoods(model, plan).lls, rtol=1e-5)
    got = {name: own.grad for name, own in model.named_parameters() if own.grad is not None}
    assert got.keys() == grads.keys()
    for name, grad in got.items():
        assert float((grad - grads[name]).norm() / grads[name].norm()) < 1e-4, name


@pytest.mark.parametrize(("options", "divided"), [(NARROW, False), (LITTLE, False), (LEAST, True)])
def test_items_are_divided_only_where_memory_asks_for_it(
    options: Any, divided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, halves = [], gradient._in_halves
    monkeypatch.setattr(gradient, "_in_halves", lambda *args: (calls.append(1), halves(*args))[1])
    differentiate(build("LlamaForCausalLM"), lay_out(ASKED, ScoreOptions(**options)), ITEMS, values)
    assert bool(calls) == divided


def test_prefixes_are_nested_and_passes_go_backwards_early() -> None:
    """Otherwise the tests above would prove nothing about them."""
    model = build("LlamaForCausalLM")
    longer = [LoglikelihoodRequest((*one.inputs[:40], *range(2, 2 + i % 30)), (5,)) for i, one in enumerate(ASKED * 4)]
    plan = lay_out([*ASKED, *longer], ScoreOptions(**NARROW))
    runs = [one.run.run for one in plan.passes(plan.mode(model), model.device).passes]
    assert any(run.is_prefix and run.prefix_tokens for run in runs)
    assert len(runs) > 6
    opened = []

    class Tape(gradient._Tape):
        def run(self, index: int) -> None:
            super().run(index)
            opened.append(len(self._open))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "_Tape", Tape)
        count = len(plan.requests)
        differentiate(model, plan, range(count), lambda lls, margins: lls)
    assert opened[-1] == 0
    assert max(opened) < len(runs) / 2


def test_scoring_is_unchanged_by_gradients_before_it() -> None:
    """One plan serves both, although tensors that were made in inference mode have no gradients."""
    model = build("LlamaForCausalLM").requires_grad_(False)
    plan = lay_out(ASKED, ScoreOptions())
    before = score_loglikelihoods(model, plan)
    model.requires_grad_(True)
    found = differentiate(model, plan, range(len(ASKED)), lambda lls, margins: lls)
    np.testing.assert_allclose(found.values, before.lls, rtol=1e-6)
    assert found.tokens == before.tokens
    model.requires_grad_(False)
    assert np.array_equal(score_loglikelihoods(model, plan).lls, before.lls)


def test_without_differentiable_parameters_the_values_alone_are_computed() -> None:
    model = build("LlamaForCausalLM").requires_grad_(False)
    found = differentiate(model, lay_out(ASKED, ScoreOptions(**NARROW)), ITEMS, values)
    assert found.values.shape == (COUNT,)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_that_overflow_are_the_candidates_fault() -> None:
    model = build("LlamaForCausalLM")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(CandidateError, match="not finite"):
        differentiate(model, lay_out(ASKED, ScoreOptions()), ITEMS, values)


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count the bytes that autograd keeps, without those of parameters."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(kept.values())


@pytest.mark.parametrize("name", MODELS)
def test_the_memory_of_activations_is_predicted(name: str) -> None:
    model = MODELS[name]()
    predicted = activations_of(model, "tree")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    ids = torch.arange(90)[None] % 40
    with counted() as kept:
        out = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found = kept()
    assert out.requires_grad
    assert predicted.token * 90 + predicted.pair * 90**2 == pytest.approx(found, rel=0.25, abs=1.2 * weights)
    for limit in (1e5, 1e6, 1e8):
        tokens = predicted.tokens(limit, 160.0)
        assert (predicted.token + 160) * tokens + predicted.pair * tokens**2 <= limit
        assert (predicted.token + 160) * (tokens + 1) + predicted.pair * (tokens + 1) ** 2 > limit
    again = predicted.recomputed(model)
    assert again.token < predicted.token
