"""Rendering of chat templates in a child process, with limits on time and memory.

A template comes with a model or a recipe, and is a program: loops, recursion and repetition of text make it run for
hours or fill the memory. transformers renders it in a sandbox, which limits what it can reach, but not its time. One
child renders all prompts of a batch; it loads transformers' templates only, which takes a second.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from jinja2 import TemplateError

from evosearch.errors import CheckpointError
from evosearch.untrusted import reason

CPU_S = 5.0  # of one prompt; real templates need a millisecond
TOTAL_CPU_S = 900  # of all prompts of a batch
MEMORY = 2**29  # bytes, in addition to what the child has loaded
MAX_TEXT = 2**24  # characters of a prompt
PACKAGES = str(Path(__file__).resolve().parents[3])  # the folder from which this process imports evosearch
_LIMITS = f"{CPU_S:g} s of CPU time, {MEMORY >> 20} MiB and {MAX_TEXT >> 20} million characters for a prompt"


class ChatProcess:
    """A child process that renders messages, started by the first of them."""

    def __init__(self) -> None:
        self._child: Popen[str] | None = None

    def render(self, where: str, template: str, messages: list[dict[str, str]], generate: bool, **tokens: str) -> str:
        """Render messages as transformers does.

        Args:
            where: The template's place, for errors.
            template: The text of the template.
            messages: The chat; keys without a value are left out.
            generate: Append the start of the assistant's answer; otherwise the last message is continued.
            tokens: Special tokens by name.

        Raises:
            TemplateError: The template refuses the messages, or fails on them.
            CheckpointError: It exceeds the limits.
        """
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        answer = self._ask({"template": template, "messages": chat, "generate": generate, "tokens": tokens})
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise TemplateError(f"chat template of {where}: {answer['refused']}")
        raise _too_much(where, answer["failed"])

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._child = self._child or _start()
        assert child.stdin is not None
        assert child.stdout is not None
        line = ""
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
        except BaseException:  # interrupted: the answer would be read as that of the next request
            self.close()
            raise
        if line.endswith("\n"):
            return dict(json.loads(line))
        code = child.wait()
        self.close()
        ended = (
            "it takes too long"
            if code in (-signal.SIGPROF, -signal.SIGXCPU)
            else f"its process ended with exit code {code}"
        )
        return {"failed": ended}


def _too_much(where: str, what: str) -> CheckpointError:
    next = "Use another model's template: `chat_template` in the recipe, or `apply_chat_template: false` in the suite"
    return CheckpointError(where, f"cannot render the chat template: {what}", f"At most {_LIMITS}", next)


def _start() -> "Popen[str]":
    paths = os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", __name__, str(CPU_S)]
    # In its own session, so that Ctrl-C reaches only this process
    return Popen(  # noqa: S603
        command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
    )


def _main() -> None:
    """Answer requests, one a line, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    from transformers.utils.chat_template_utils import render_jinja_template

    cpu_s = float(sys.argv[1])
    _limit()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal ends the process
        answer = _rendered(render_jinja_template, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _rendered(render: Any, request: dict[str, Any]) -> dict[str, str]:
    generate = request["generate"]
    how = {"add_generation_prompt": generate, "continue_final_message": not generate, **request["tokens"]}
    try:
        (text,), _ = render([request["messages"]], chat_template=request["template"], **how)
    except (MemoryError, RecursionError) as exc:
        return {"failed": f"it needs too much memory ({reason(exc)})"}
    except Exception as exc:  # expressions of a template can raise anything
        return {"refused": f"{type(exc).__name__}: {reason(exc)}"}
    return {"text": text} if len(text) <= MAX_TEXT else {"failed": f"it makes a text of {len(text)} characters"}


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (TOTAL_CPU_S, TOTAL_CPU_S))
    with contextlib.suppress(OSError):  # no /proc: only time is limited
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    _main()
