"""Templates of suites, recipes and models are bounded in time and memory, when they are compiled and when rendered."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from evosearch.checkpoints.tokenizers.chat_template import MAX_TEMPLATE, chosen
from evosearch.errors import CheckpointError, RecipeError, SuiteError
from evosearch.evaluation.harness import chat_process
from evosearch.evaluation.harness.chat_process import ChatProcess
from evosearch.evaluation.suites.linked_documents import group_names

DEEP = "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"
NESTED_LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
DOUBLED = "{% set ns = namespace(s='xxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
DOCUMENTS: list[Any] = [
    {"id": "AB-12", "page": {"n": 7}, "text": "a", "split": "x"},
    {"id": "CD-3", "page": {"n": 2}, "text": "b", "split": "y"},
]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NESTED_LOOPS, "cannot have a loop"),
        ("{{ ('a'*40 ~ '!') | regex_replace('(a+)+$','') }}", "cannot have the filter 'regex_replace'"),
        ("{{ text | replace('a', 'aaaa') | replace('a', 'aaaa') }}", "cannot have the filter 'replace'"),
        ("{{ text | join(text) }}", "cannot have the filter 'join'"),
        ("{{ '%99999999d' | format(1) }}", "cannot have the filter 'format'"),
        ("{{ 'x' * 10**10 }}", "cannot have '*'"),
        ("{{ 10**10 }}", r"cannot have '\*\*'"),
        ("{{ '%99999999d' % 1 }}", "cannot have '%'"),
        ("{{ text.center(99999999) }}", "cannot have a call of 'center'"),
        ("{{ range(99999) }}", "cannot have a call"),
        (TWICE, "cannot have a macro"),
        ("{% set a = 1 %}", "cannot have 'assign'"),
        ("{% include 'x' %}", "cannot have 'include'"),
        (DEEP, "not a valid Jinja template: nested too deeply"),
        ("{{ " + "9" * 5000 + " }}", "not a valid Jinja template"),
    ],
)
def test_a_group_is_fields_and_filters(template: str, said: str) -> None:
    with pytest.raises(SuiteError, match=rf"s\.yaml: tasks\[0\]\.group_by: .*{said}"):
        group_names("s.yaml: tasks[0]", "t", DOCUMENTS, template)


@pytest.mark.parametrize(
    ("template", "groups"),
    [
        ("page {{page.n}}", ["page 7", "page 2"]),
        ("{{ page['n'] // 3 }}{% if page.n > 3 %}+{% else %}-{% endif %}", ["2+", "0-"]),
        ("{{ id.split('-')[0] | lower }}", ["ab", "cd"]),
        ("{{ id[:2] ~ '/' ~ (text | upper if text is defined else 'none') }}", ["AB/A", "CD/B"]),
        ("{{ missing | default('none') }}", ["none", "none"]),
    ],
)
def test_what_a_group_may_be(template: str, groups: list[str]) -> None:
    assert group_names("s.yaml: tasks[0]", "t", DOCUMENTS, template) == groups


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**9 }}",
        "{{ 10**(10**9) }}",
        "{% if false %}{{ 'x' * 10**10 }}{% endif %}",
        "{% set x = 'y' * 10**10 %}",
        "{{ 'x' | center(10**10) }}",
    ],
)
def test_compiling_a_recipes_template_evaluates_nothing(template: str) -> None:
    assert chosen(template, {}) == template  # without limits, this would need more memory than the machine has


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (DEEP, "invalid Jinja template: nested too deeply"),
        ("{% if 1 %}" * 500 + "{% endif %}" * 500, "invalid Jinja template: "),
        ("{{ 1 }}" + " " * MAX_TEMPLATE, f"{MAX_TEMPLATE + 7} characters. At most {MAX_TEMPLATE}"),
        ("{{ nope", "invalid Jinja template: line 1: "),
    ],
)
def test_a_recipes_template_is_bounded(template: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"r.yaml: recipe.chat_template: {said}") as caught:
        chosen(template, {}, "r.yaml: recipe.chat_template")
    assert len(str(caught.value)) < 400


@pytest.fixture(scope="module")
def chats() -> Iterator[ChatProcess]:
    found = ChatProcess()
    yield found
    found.close()


def render(chats: ChatProcess, template: str) -> str:
    return chats.render("models/x", template, [{"role": "user", "content": "hi"}], True, bos_token="<s>")


@pytest.mark.parametrize(
    "template",
    ["{{ 'x' * 10**10 }}", DOUBLED, DEEP, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'x' * (2**24 + 1) }}"],
)
def test_memory_of_a_chat_is_bounded(chats: ChatProcess, template: str) -> None:
    with pytest.raises(CheckpointError, match=r"models/x: cannot render the chat template: .* At most 5 s of CPU time"):
        render(chats, template)
    assert render(chats, "{{ bos_token }}{{ messages[0].content }}") == "<s>hi"  # the next chat is not affected


def test_constants_of_a_chat_are_bounded(chats: ChatProcess) -> None:
    assert render(chats, "{% if false %}{{ 'x' * 10**11 }}{% endif %}ok") == "ok"


@pytest.mark.parametrize("template", [NESTED_LOOPS, TWICE])
def test_time_of_a_chat_is_bounded(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(chat_process, "CPU_S", 0.5)
    chats = ChatProcess()
    try:
        with pytest.raises(CheckpointError, match="cannot render the chat template: it takes too long"):
            render(chats, template)
        assert chats._child is None
    finally:
        chats.close()


def test_a_template_that_refuses_a_chat_is_named(chats: ChatProcess) -> None:
    with pytest.raises(TemplateError, match="chat template of models/x: TemplateError: no system message"):
        render(chats, "{{ raise_exception('no system message') }}")


def test_a_process_that_is_killed_is_an_error(chats: ChatProcess) -> None:
    assert render(chats, "ok") == "ok"
    assert chats._child is not None
    chats._child.send_signal(signal.SIGKILL)
    chats._child.wait()
    with pytest.raises(CheckpointError, match="its process ended with exit code -9"):
        render(chats, "ok")
    assert render(chats, "ok") == "ok"


def test_freezing_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Any) -> None:
    """A suite with chats: prompts are rendered by the child, and its limits blame the model, not the suite."""
    import yaml

    from evosearch.checkpoints.tokenizers.loading import load_tokenizer
    from evosearch.evaluation.harness.harness import Harness
    from evosearch.evaluation.suites.suite import load_suite

    folder = world().parent
    data = yaml.safe_load((folder / "suite.yaml").read_text()) | {"apply_chat_template": True}
    data["include"] = [str((folder / "tasks").resolve())]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    harness = Harness(load_suite(tmp_path / "s.yaml"))
    ended: list[ChatProcess] = []
    close = ChatProcess.close
    monkeypatch.setattr(ChatProcess, "close", lambda self: (ended.append(self), close(self))[1])
    tokenizer = load_tokenizer(folder / "base")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    frozen = harness.freeze(harness.batch("search"), tokenizer, 64)
    assert len(frozen.generations) == 8
    assert len(ended) == 1
    assert ended[0]._child is None
    tokenizer.chat_template = "{{ 'x' * 10**10 }}"
    with pytest.raises(CheckpointError, match=r"base: cannot render the chat template: it needs too much memory"):
        harness.freeze(harness.batch("search"), tokenizer, 64)
