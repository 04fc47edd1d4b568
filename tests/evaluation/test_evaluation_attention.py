"""Every family in every execution mode, compared with its own forward, one sequence at a time, and its own generate."""

import copy
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from evosearch.checkpoints.families.registry import all_families
from evosearch.errors import CandidateError
from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import MODES, Mode, ScoreOptions

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 2.0,
}
WINDOW: dict[str, Any] = {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}
BY_LAYER = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = sorted(all_families())
SLIDING = sorted(name for name in FAMILIES if hasattr(getattr(transformers, name).config_class(), "sliding_window"))
GENERATING: tuple[Mode, ...] = ("tree", "rows")  # prompts as tries, or in rows of one length
NARROW: dict[str, Any] = {"batch_tokens": 24, "cached_tokens": 400}  # several runs, and prefixes in the cache


def build(architecture: str, seed: int = 0, spread: float = 0.15, **changes: Any) -> Any:
    """A random model, including norms and biases."""
    kind = getattr(transformers, architecture)
    known = kind.config_class()
    values = {key: value for key, value in SMALL.items() if hasattr(known, key) or "softcapping" not in key}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(kind.config_class(**values | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += spread * torch.randn(parameter.shape)
    return model.eval()


def windowed(architecture: str, **changes: Any) -> Any:
    """A model with windows shorter than the sequences, in some layers if the family mixes them, otherwise in all."""
    kinds = getattr(getattr(transformers, architecture).config_class(), "layer_types", None)
    given = {} if kinds is None or architecture.startswith("Qwen2") else {"layer_types": BY_LAYER}
    return build(architecture, **WINDOW | given | changes)


def sequences() -> list[tuple[int, ...]]:
    """Few-shot prompts with one prefix and choices, separate texts, prefixes of other sequences, single tokens."""
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
    return found


def requests() -> list[LoglikelihoodRequest]:
    """Short continuations, and complete texts scored from their first token."""
    found = []
    for index, one in enumerate(sequences()):
        last = 7 + index % 5
        size = len(one) if index in (0, 4) else min(1 + index % 4, len(one))
        found.append(LoglikelihoodRequest(one, (*one[len(one) - size + 1 :], last)))
    return found


@dataclass
class Own:
    """A model's own answers, one sequence at a time; computed once and compared with every mode."""

    model: Any
    tokenizer: Any
    asked: list[LoglikelihoodRequest] = field(default_factory=requests)
    prompts: list[GenerationRequest] = field(
        default_factory=lambda: [GenerationRequest(one, (), 8 - len(one) % 2) for one in sequences()[:-5:2]]
    )

    @cached_property
    def expected(self) -> tuple[list[float], list[bool], list[float]]:
        """Log-likelihoods, greedy flags, and smallest margin between the two best tokens, by plain forwards."""
        lls, flags, margins = [], [], []
        for one in self.asked:
            ids = torch.tensor([one.inputs])
            with torch.no_grad():
                logits = self.model(input_ids=ids, use_cache=False).logits[0, -len(one.targets) :].float()
            targets = torch.tensor(one.targets)[:, None]
            lls.append(float(logits.double().log_softmax(-1).gather(1, targets).sum()))
            flags.append(bool((logits.argmax(-1) == targets[:, 0]).all()))
            best = logits.topk(2).values
            margins.append(float((best[:, 0] - best[:, 1]).min()))
        assert np.ptp(lls) > 1
        assert sum(margin > 1e-4 for margin in margins) > len(margins) / 2
        return lls, flags, margins

    @cached_property
    def texts(self) -> list[str]:
        """Continuations by `generate`."""
        made = []
        for one in self.prompts:
            ids = torch.tensor([one.prompt])
            own = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=one.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            made.append(self.tokenizer.decode(own[0, len(one.prompt) :], skip_special_tokens=True))
        assert len(set(made)) > 2
        return made

    def check(self, mode: Mode | None = None, wanted: Mode | None = None) -> Mode:
        """Log-likelihoods in a mode (None: the chosen one) are the model's own."""
        plan = lay_out(self.asked, ScoreOptions(**NARROW, **({} if mode is None else {"modes": (mode,)})))
        assert wanted is None or plan.mode(self.model) == wanted
        lls, flags, _, tokens = score_loglikelihoods(self.model, plan)
        expected, hits, margins = self.expected
        np.testing.assert_array_less(np.abs(lls - expected), 1e-3 + 1e-6 * np.abs(expected))
        sure = np.array(margins) > 1e-4
        assert flags[sure].tolist() == np.array(hits)[sure].tolist()
        if plan.mode(self.model) == "tree":
            assert (tokens.forwarded, tokens.padded) == (tokens.distinct, 0)
        return plan.mode(self.model)

    def check_generation(self, mode: Mode | None = None, wanted: Mode | None = None) -> Mode:
        """Continuations in a mode are the model's own."""
        options = ScoreOptions(**NARROW, generation_rows=3, **({} if mode is None else {"modes": (mode,)}))
        plan = lay_out_generations(self.prompts, Decoder(self.tokenizer), options)
        assert wanted is None or plan.mode(self.model) == wanted
        assert generate(self.model, plan)[0] == self.texts
        return plan.mode(self.model)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_in_every_mode(architecture: str, tokenizer: Any) -> None:
    own = Own(build(architecture), tokenizer)
    assert lay_out(own.asked, ScoreOptions()).mode(own.model) == "tree"
    for mode in MODES:
        own.check(mode, mode)
    for mode in GENERATING:
        own.check_generation(mode, mode)


@pytest.mark.parametrize("architecture", SLIDING)
def test_windows_shorter_than_the_sequences(architecture: str, tokenizer: Any) -> None:
    own = Own(windowed(architecture), tokenizer)
    assert lay_out(own.asked, ScoreOptions()).mode(own.model) == "tree"
    for mode in MODES:
        own.check(mode, mode)
    for mode in GENERATING:
        own.check_generation(mode, mode)


def longrope(**changes: Any) -> Any:
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 5.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40, **factors}
    return build(
        "Phi3ForCausalLM",
        original_max_position_embeddings=40,
        rope_parameters=rope,
        partial_rotary_factor=1.0,
        **changes,
    )


def test_rotary_scaling_by_length_goes_row_by_row_beyond_the_first_context(tokenizer: Any) -> None:
    """Phi-3's longrope changes all positions beyond 40 tokens, also while a prompt is continued."""
    own = Own(longrope(), tokenizer)
    own.check(None, "rows")
    assert {len(one.prompt) for one in own.prompts} & set(
        range(33, 41)
    )  # these cross the limit while they are continued
    assert own.check_generation() == "rows"
    own.asked = [one for one in own.asked if len(one.inputs) <= 40]
    own.prompts = [one for one in own.prompts if len(one.prompt) + one.max_new_tokens <= 40]
    short = Own(own.model, tokenizer, own.asked, own.prompts)
    assert (len(short.asked) > 5, len(short.prompts) > 3) == (True, True)
    short.check(None, "tree")
    assert short.check_generation() == "tree"


# Architectures that are not registered → config and expected mode. Windows and chunks are short.
OTHERS: dict[str, tuple[dict[str, Any], Mode]] = {
    "BloomForCausalLM": ({"n_layer": 2, "n_head": 4}, "prefix"),  # alibi: it builds its own bias from a plain mask
    "MptForCausalLM": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "prefix"),
    "GPTNeoForCausalLM": (  # local attention by position in the row, not visible in its config
        {"attention_types": [[["global", "local", "local"], 1]], "num_layers": 3, "num_heads": 4, "window_size": 5},
        "prefix",
    ),
    "MambaForCausalLM": ({"state_size": 4, "num_hidden_layers": 2}, "rows"),
    "RwkvForCausalLM": ({"attention_hidden_size": 32, "context_length": 128}, "rows"),
    "Qwen3NextForCausalLM": (
        {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "rows",
    ),
    "Lfm2ForCausalLM": ({"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3}, "rows"),
    "Cohere2ForCausalLM": ({**WINDOW, "layer_types": BY_LAYER, "logit_scale": 1.0}, "tree"),
    "GptOssForCausalLM": ({**WINDOW, "layer_types": BY_LAYER, "rope_parameters": {"rope_type": "default"}}, "tree"),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_models_fall_back_to_what_they_can(architecture: str, tokenizer: Any) -> None:
    values, wanted = OTHERS[architecture]
    model = build(architecture, attn_logit_softcapping=None, final_logit_softcapping=None, **values)
    own = Own(model, tokenizer)
    own.check(None, wanted)
    assert own.check_generation() == ("tree" if wanted == "tree" else "rows")


def test_a_window_that_the_config_names_and_the_model_ignores(tokenizer: Any) -> None:
    """Converted checkpoints may keep such keys: a Llama with Mistral's `sliding_window`."""
    own = Own(build("LlamaForCausalLM", sliding_window=5), tokenizer)
    for mode in MODES:
        own.check(mode, mode)


class Deaf(transformers.LlamaModel):
    """A model that attends to everything before, ignoring the mask."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **{**kwargs, "attention_mask": None})


def test_a_model_that_ignores_masks_is_found_out(tokenizer: Any) -> None:
    own = Own(build("LlamaForCausalLM"), tokenizer)
    own.model.model.__class__ = Deaf
    assert own.check() == "prefix"
    assert own.check_generation() == "rows"
    one = LoglikelihoodRequest((5,), (6,))  # works with a single token, too
    fresh = build("LlamaForCausalLM")
    fresh.model.__class__ = Deaf
    assert lay_out([one], ScoreOptions()).mode(fresh) == "prefix"


def test_the_first_allowed_mode_that_is_correct_is_used() -> None:
    mistral, neo = windowed("MistralForCausalLM"), build("GPTNeoForCausalLM", **OTHERS["GPTNeoForCausalLM"][0])
    modes: list[tuple[Mode, ...]] = [MODES, ("tree", "rows"), ("prefix", "rows"), ("rows",), ("tree",)]
    for allowed, (one, other) in zip(
        modes,
        [("tree", "prefix"), ("tree", "rows"), ("prefix", "prefix"), ("rows", "rows"), ("tree", "prefix")],
        strict=True,
    ):
        plan = lay_out(requests(), ScoreOptions(modes=allowed))
        assert (plan.mode(mistral), plan.mode(neo)) == (one, other)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attention_implementations_take_tree_masks(attention: str, tokenizer: Any) -> None:
    own = Own(windowed("Gemma3ForCausalLM"), tokenizer)
    own.model.set_attn_implementation(attention)
    own.check(None, "tree")
    assert own.check_generation() == "tree"


def test_half_precision_is_within_its_rounding(tokenizer: Any) -> None:
    """bfloat16 has 8 bits: a log-likelihood is off by about 2⁻⁸ of the logits per token, in any mode."""
    model = windowed("MistralForCausalLM", spread=0.08).to(torch.bfloat16)
    own = Own(model, tokenizer)
    plan = lay_out(own.asked, ScoreOptions(**NARROW))
    assert plan.mode(model) == "tree"
    lls = score_loglikelihoods(model, plan)[0]
    targets = np.array([len(one.targets) for one in own.asked])
    assert (np.abs(lls - own.expected[0]) <= 0.05 * targets).all()
    plain = score_loglikelihoods(model, lay_out(own.asked, ScoreOptions(**NARROW, modes=("rows",))))[0]
    assert np.abs(lls - plain).max() < 0.3


def test_broken_weights_are_not_what_is_remembered_of_a_model() -> None:
    """The first candidate of a search overflows; later ones, written into the same model, are run correctly."""
    for architecture, wanted in (("MistralForCausalLM", "tree"), ("GPTNeoForCausalLM", "prefix")):
        values = WINDOW if wanted == "tree" else OTHERS[architecture][0]
        model = build(architecture, **values)
        plan, good = lay_out(requests(), ScoreOptions(**NARROW)), copy.deepcopy(model.state_dict())
        expected = score_loglikelihoods(build(architecture, **values), plan)[0]
        with torch.no_grad():
            next(iter(model.parameters())).fill_(math.nan)
        with pytest.raises(CandidateError, match="log-likelihoods are not finite"):
            score_loglikelihoods(model, plan)
        model.load_state_dict(good)
        assert plan.mode(model) == wanted
        np.testing.assert_allclose(score_loglikelihoods(model, plan)[0], expected, rtol=1e-9)


def test_a_candidate_written_into_the_same_model_is_scored_by_its_own_weights(tokenizer: Any) -> None:
    own = Own(windowed("Gemma3ForCausalLM"), tokenizer)
    own.check(None, "tree")
    own.model.load_state_dict(windowed("Gemma3ForCausalLM", seed=1).state_dict())
    other = Own(own.model, tokenizer)
    other.check(None, "tree")
    assert not np.allclose(other.expected[0], own.expected[0], atol=1e-2)
    assert other.check_generation() == "tree"


def test_a_model_that_keeps_no_cache_by_its_config(tokenizer: Any) -> None:
    own = Own(build("LlamaForCausalLM", use_cache=False), tokenizer)
    own.check(None, "tree")
    own.check("prefix", "prefix")
    for mode in GENERATING:
        own.check_generation(mode, mode)


def test_nothing_is_kept_for_gradients() -> None:
    model = build("LlamaForCausalLM").requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    score_loglikelihoods(model, lay_out(requests(), ScoreOptions(**NARROW)))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_a_model_that_cannot_run_without_its_head_is_refused() -> None:
    class Bare(transformers.LlamaForCausalLM):
        base_model_prefix = "nothing"

        def get_decoder(self) -> Any:
            return None

    torch.manual_seed(0)
    known = {key: value for key, value in SMALL.items() if "softcapping" not in key}
    model = Bare(transformers.LlamaConfig(**known)).eval()
    with pytest.raises(CandidateError, match="score: Bare cannot be run without its head"):
        score_loglikelihoods(model, lay_out(requests(), ScoreOptions()))
