"""Chat templates: where a model folder keeps one, which one a recipe asks for, and whether it is one at all."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evosearch.checkpoints.reader import read_json
from evosearch.checkpoints.tokenizers.tokenizer import SETTINGS
from evosearch.errors import CheckpointError, RecipeError, did_you_mean

FILE, OLDER, NAMED = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
AUTO = "auto"

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
    """The chat template of a model folder, the default one where it has several; None: it has none.

    Raises:
        CheckpointError: a file that holds one is damaged.
    """
    if (folder / FILE).is_file():
        return _text(folder / FILE)
    found = read_json(folder / SETTINGS).get("chat_template") if (folder / SETTINGS).is_file() else None
    if found is None and (folder / OLDER).is_file():
        found = read_json(folder / OLDER).get("chat_template")
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, Mapping) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) and found.strip() else None


def chosen(asked: str, folders: Mapping[str, Path], where: str = "recipe.chat_template") -> str:
    """The template that a recipe asks for.

    Args:
        asked: `auto` for the commonest among the models, of equally common ones the first model's that has one of
            them; a name of `BUILT_IN`; or the template itself.
        folders: model → where its tokenizer and chat template lie, the donor first.
        where: what to name in an error.

    Raises:
        RecipeError: it is neither, or no template; or no model has one.
        CheckpointError: a model's file is damaged.
    """
    if asked == AUTO:
        found = [text.strip() for text in map(of_folder, folders.values()) if text is not None]
        if not found:
            what = "got auto, but none of the recipe's models has a chat template"
            raise RecipeError(where, what, f"A Jinja template, or one of: {', '.join(BUILT_IN)}")
        return Counter(found).most_common(1)[0][0]  # of equals the one seen first
    if "{" not in asked:
        if asked not in BUILT_IN:
            allowed = f"A Jinja template (it has a '{{'), or one of: {', '.join((AUTO, *BUILT_IN))}"
            raise RecipeError(where, f"got {asked!r}", allowed, did_you_mean(asked, (AUTO, *BUILT_IN)))
        return BUILT_IN[asked]
    try:
        ImmutableSandboxedEnvironment(extensions=[loopcontrols, _Generation]).compile(asked)
    except TemplateSyntaxError as error:
        what = f"not a Jinja template: line {error.lineno}: {error.message}"
        raise RecipeError(where, what, next="Try it with apply_chat_template of the model's tokenizer") from None
    return asked


class _Generation(Extension):
    """`{% generation %}`, with which templates mark the assistant's part for training: read, so that it is no error."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), f"not readable as text: {error}") from None
