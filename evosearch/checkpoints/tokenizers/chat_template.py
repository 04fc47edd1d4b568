"""Chat templates: reading them from model folders, and selecting and validating the template of a recipe."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evosearch.checkpoints.model_files import read_json, read_text
from evosearch.checkpoints.tokenizers.tokenizer import SETTINGS
from evosearch.errors import RecipeError, did_you_mean
from evosearch.untrusted import boundary, present

FILE, OLDER, NAMED = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
AUTO = "auto"
MAX_TEMPLATE = 2**17  # characters; the longest templates of public models have some 30,000

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
BUILT_IN = {"chatml": CHATML}


def of_folder(folder: Path) -> str | None:
    """Return the chat template of a model folder (the default one of several); None if it has none.

    Raises:
        CheckpointError: A file with a template is damaged.
    """
    if present(folder / FILE):
        return read_text(folder / FILE).strip() or None
    found = read_json(folder / SETTINGS).get("chat_template") if present(folder / SETTINGS) else None
    if found is None and present(folder / OLDER):
        found = read_json(folder / OLDER).get("chat_template")
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, Mapping) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) and found.strip() else None


def chosen(setting: str, folders: Mapping[str, Path], where: str = "recipe.chat_template") -> str:
    """Return the template that a recipe specifies.

    Args:
        setting: `auto` for the most common template among the models (the first one in a tie); a name in `BUILT_IN`;
            or the template itself.
        folders: Model → folder of its tokenizer and chat template, the donor first.
        where: Key, for errors.

    Raises:
        RecipeError: The setting is invalid, or it is `auto` and no model has a template.
        CheckpointError: The file of a model is damaged.
    """
    if setting == AUTO:
        found = [text.strip() for text in map(of_folder, folders.values()) if text is not None]
        if not found:
            what = "got auto, but none of the recipe's models has a chat template"
            raise RecipeError(where, what, f"A Jinja template, or one of: {', '.join(BUILT_IN)}")
        return Counter(found).most_common(1)[0][0]  # the first one in a tie
    if "{" not in setting:
        if setting not in BUILT_IN:
            allowed = f"A Jinja template (it has a '{{'), or one of: {', '.join((AUTO, *BUILT_IN))}"
            raise RecipeError(where, f"got {setting!r}", allowed, did_you_mean(setting, (AUTO, *BUILT_IN)))
        return BUILT_IN[setting]
    _check(setting, where)
    return setting


def _check(template: str, where: str) -> None:
    """Compile a template, whose constant expressions are not evaluated; only a process with limits renders it."""
    if len(template) > MAX_TEMPLATE:
        raise RecipeError(where, f"{len(template)} characters", f"At most {MAX_TEMPLATE}")
    next = "Test it with apply_chat_template of the model's tokenizer"
    with boundary(where, RecipeError, "invalid Jinja template", next):
        try:
            _environment().compile(template)
        except TemplateSyntaxError as error:
            what = f"invalid Jinja template: line {error.lineno}: {error.message}"
            raise RecipeError(where, what, next=next) from None


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment that evaluates nothing at compilation, since what it prints needs the context."""
    return ImmutableSandboxedEnvironment(
        extensions=[loopcontrols, _Generation], optimized=False, finalize=pass_context(lambda context, value: value)
    )


class _Generation(Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training; accepted but without effect."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the content of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
