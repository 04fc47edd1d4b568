"""Families that rescale their logits: the scorer computes the model's own logits, or rejects the model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from evosearch.checkpoints.families import llama, registry
from evosearch.checkpoints.families.registry import LogitRescaling, all_families
from evosearch.errors import CandidateError
from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest, lay_out_generations
from evosearch.evaluation.engine.head import head_logits
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions

SIZE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Registered below, as another distribution could
OTHERS = {
    "CohereForCausalLM": LogitRescaling("logit_scale", lambda logits, scale: logits * scale),
    "GraniteForCausalLM": LogitRescaling("logits_scaling", lambda logits, scale: logits / scale),
}
# Architecture → its rescaling: every registered family that has one, and the others
CASES = OTHERS | {name: family.logits for name, family in all_families().items() if family.logits is not None}
CONSIDERABLE = 2.0  # as a factor, a divisor and a cap of the logits of these models


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register families that rescale in other ways than those of evosearch."""
    others = {name: replace(llama.FAMILY, architectures=(name,), logits=logits) for name, logits in OTHERS.items()}
    found = others | dict(all_families())
    with monkeypatch.context() as patch:
        patch.setattr(registry, "all_families", lambda: found)
        yield


def make(architecture: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    kind = getattr(transformers, architecture)
    return kind(kind.config_class(**SIZE | {CASES[architecture].key: CONSIDERABLE} | changes)).eval()


def requests() -> list[LoglikelihoodRequest]:
    draw = np.random.default_rng(0)
    rows = [tuple(int(token) for token in draw.integers(3, 50, length)) for length in (4, 9, 9, 14, 30)]
    return [LoglikelihoodRequest(row[:-1], row[-2:]) for row in rows]


@pytest.mark.parametrize("architecture", CASES)
def test_logits_are_the_familys_own(architecture: str) -> None:
    model = make(architecture)
    ids = torch.tensor([requests()[4].inputs])
    with torch.no_grad():
        own = model(input_ids=ids).logits[0].float()
        hidden = model.base_model(input_ids=ids).last_hidden_state[0]
        plain = model.get_output_embeddings()(hidden).float()
    torch.testing.assert_close(head_logits(model, hidden), own, rtol=1e-5, atol=1e-5)
    assert (plain - own).abs().max() > 0.1 * own.abs().max()  # the head alone would have been wrong


@pytest.mark.parametrize("architecture", CASES)
def test_log_likelihoods_are_the_familys_own(architecture: str) -> None:
    model = make(architecture)
    lls, greedy, *_ = score_loglikelihoods(model, lay_out(requests(), ScoreOptions(batch_tokens=64)))
    for ll, flag, request in zip(lls, greedy, requests(), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request.inputs])).logits[0, -2:].float()
        wanted = torch.tensor(request.targets)
        assert ll == pytest.approx(float(logits.log_softmax(-1)[[0, 1], wanted].sum()), abs=1e-4)
        assert flag == bool((logits.argmax(-1) == wanted).all())


@pytest.mark.parametrize("architecture", CASES)
def test_generation_is_the_familys_own(architecture: str, tokenizer: Any) -> None:
    model = make(architecture, vocab_size=len(tokenizer))
    prompts = [tuple(token % len(tokenizer) for token in request.inputs) for request in requests()]
    plan = lay_out_generations([GenerationRequest(p, (), 8) for p in prompts], Decoder(tokenizer), ScoreOptions())
    texts, _ = generate(model, plan)
    for text, prompt in zip(texts, prompts, strict=True):
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert text == tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)


def test_many_reads_are_held_a_part_at_a_time() -> None:
    model = make("Gemma2ForCausalLM")
    row = tuple(range(3, 45))
    whole = [LoglikelihoodRequest(row[:-1], row[1:]), LoglikelihoodRequest(row[:20], row[10:21])]
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    expected, flags, *_ = score_loglikelihoods(model, lay_out(whole, ScoreOptions()))
    assert max(sizes) == 41
    sizes.clear()
    lls, greedy, *_ = score_loglikelihoods(model, lay_out(whole, ScoreOptions(batch_reads=7)))
    np.testing.assert_allclose(lls, expected, atol=1e-4)
    assert greedy.tolist() == flags.tolist()
    assert max(sizes) == 7


@pytest.mark.parametrize(
    ("key", "value"), [("logit_scale", 0.5), ("final_logit_softcapping", 30.0), ("lm_head_multiplier", 0.1)]
)
def test_a_rescaling_that_is_not_the_familys_is_refused_by_name(key: str, value: float) -> None:
    model = make("GraniteForCausalLM")
    setattr(model.config, key, value)
    with pytest.raises(CandidateError, match=f"score: granite sets {key}, which is not supported"):
        score_loglikelihoods(model, lay_out(requests(), ScoreOptions()))


def test_a_family_that_does_more_to_its_logits_is_refused_by_name(tokenizer: Any) -> None:
    class Louder(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZE)
    model = Louder(config).eval()
    message = "score: llama changes its logits after the head in an unsupported way"
    with pytest.raises(CandidateError, match=message):
        score_loglikelihoods(model, lay_out(requests(), ScoreOptions()))
    plan = lay_out_generations([GenerationRequest((5, 6, 7), (), 2)], Decoder(tokenizer), ScoreOptions())
    with pytest.raises(CandidateError, match=message):
        generate(model, plan)
