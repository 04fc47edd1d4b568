"""Text handling of lm-eval's Hugging Face model, without a model.

Tokenization is not reimplemented but recorded: lm-eval's own code runs up to the point where it would call the model,
and the arguments of that call are kept. Import this module inside a function, since lm-eval takes seconds to import.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jinja2 import TemplateError
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token

from evosearch.errors import CheckpointError
from evosearch.evaluation.harness.chat_process import ChatProcess
from evosearch.untrusted import boundary


@dataclass(frozen=True)
class Prompt:
    """Arguments that lm-eval would pass to `model.generate` for one request."""

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_length: int  # prompt and new tokens together
    kwargs: dict[str, Any]  # the remaining generation_kwargs of the task


class RequestRecorder(HFLM):
    """Recorder of tokenized requests.

    Args:
        tokenizer: A transformers tokenizer.
        max_length: The model's context length in tokens.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        # Not HFLM.__init__, which loads a model; its text handling reads the attributes below.
        LM.__init__(self)
        self.tokenizer = configure_pad_token(copy.deepcopy(tokenizer))
        self._max_length = max_length
        self._device = torch.device("cpu")
        self.backend = "causal"
        self.add_bos_token = self.custom_prefix_token_id = None
        self.think_end_token = self.enable_thinking = None
        self.chat_template_args: dict[str, Any] = {}
        self.truncation = False
        self.batch_size_per_gpu = 1
        self._recorded: list[Any] = []
        self._chats = ChatProcess()

    @property
    def source(self) -> str:
        """Folder of the tokenizer, for errors."""
        return str(getattr(self.tokenizer, "name_or_path", "") or "tokenizer")

    def close(self) -> None:
        """End the process that renders chats; the next chat starts another."""
        self._chats.close()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages as lm-eval does: without the system message if the template refuses it."""
        template = self.tokenizer.get_chat_template(**self.chat_template_args)
        others = [message for message in chat_history if message["role"] != "system"]
        tokens = self.tokenizer.special_tokens_map
        try:
            return self._chats.render(self.source, template, chat_history, add_generation_prompt, **tokens)
        except TemplateError:
            return self._chats.render(self.source, template, others, add_generation_prompt, **tokens)

    def tok_encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encode a text; an error is the tokenizer's, not the suite's."""
        with boundary(self.source, CheckpointError, "the tokenizer cannot encode a prompt"):
            return super().tok_encode(*args, **kwargs)

    def tok_batch_encode(self, *args: Any, **kwargs: Any) -> Any:
        """Encode texts; an error is the tokenizer's, not the suite's."""
        with boundary(self.source, CheckpointError, "the tokenizer cannot encode a prompt"):
            return super().tok_batch_encode(*args, **kwargs)

    def chat(self, template: bool | str) -> Callable[..., str]:
        """Return the renderer of messages, with the tokenizer's default chat template or a named one."""
        several = isinstance(self.tokenizer.chat_template, dict)
        self.chat_template_args = {"chat_template": template} if several and isinstance(template, str) else {}
        return self.apply_chat_template

    def templates(self) -> tuple[str, ...]:
        """Return the names of the tokenizer's chat templates; a single one is `default`, as in transformers."""
        own = self.tokenizer.chat_template
        return tuple(own) if isinstance(own, dict) else ("default",) if own else ()

    def pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokenize context and continuation, without truncation."""
        self._recorded = []
        self.loglikelihood([SimpleNamespace(args=(context, continuation), task_name=None)], disable_tqdm=True)
        ((_, context_tokens, continuation_tokens),) = self._recorded
        return tuple(context_tokens), tuple(continuation_tokens)

    def windows(self, text: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the (context, continuation) windows that score a complete text; none if it has no tokens."""
        self._recorded = []
        self.loglikelihood_rolling([SimpleNamespace(args=(text,), task_name=None)], disable_tqdm=True)
        return [(tuple(context), tuple(continuation)) for _, context, continuation in self._recorded]

    def prompt(self, context: str, gen_kwargs: dict[str, Any]) -> Prompt:
        """Tokenize a prompt, truncated on the left as lm-eval does, with its stopping rules."""
        request = SimpleNamespace(args=(context, copy.deepcopy(gen_kwargs)))
        self._recorded = []
        self.generate_until([request], disable_tqdm=True)
        recorded: Prompt = self._recorded[0]
        return recorded

    def token_count(self, text: str) -> int:
        """Return the number of tokens of a stop string."""
        with boundary(self.source, CheckpointError, "the tokenizer cannot encode a stop string"):
            return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self._recorded += requests
        return [(0.0, False)] * len(requests)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        generation_kwargs.pop("attention_mask")  # a single prompt has no padding
        self._recorded.append(Prompt(tuple(context[0].tolist()), tuple(stop), max_length, generation_kwargs))
        return context
