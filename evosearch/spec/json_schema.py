"""JSON Schemas of search specs, recipes and suites, generated from their models for editors.

They cover the form of a file: its keys, types and bounds. Rules that relate several keys are left to `evosearch check`.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evosearch.evaluation.suites.suite import SuiteFile
from evosearch.recipe.provenance import KEY, Provenance
from evosearch.recipe.run_checkpoints import Checkpoints
from evosearch.recipe.schema import Module, Recipe
from evosearch.search.space.sources import SourceHole
from evosearch.spec.config import SpecFile
from evosearch.spec.stages import StagesFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
HOLE = {"type": "object", "description": "A search parameter, as `{low: 0.0, high: 1.0}` or `{choices: [a, b]}`."}
HOLE_KEYS = (
    "merge_method",
    "routing",
)  # a search parameter may replace these, as it may seed; parameters take any value


def schemas() -> dict[str, dict[str, Any]]:
    """Kind of file → its JSON Schema."""
    return {"spec": spec_schema(), "recipe": recipe_schema(), "suite": suite_schema()}


def write_schemas(folder: Path) -> None:
    """Write `<kind>.schema.json` of every kind of file into a folder."""
    for kind, schema in schemas().items():
        (folder / f"{kind}.schema.json").write_text(schema_text(schema), encoding="utf-8")


def schema_text(schema: dict[str, Any]) -> str:
    """A JSON Schema as it is written to a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def spec_schema() -> dict[str, Any]:
    """JSON Schema of a search spec, of one search or several stages."""
    schema: dict[str, Any] = TypeAdapter(SpecFile | StagesFile).json_schema()
    template = _template_schema()
    definitions = {**template.pop("$defs", {}), **schema.pop("$defs"), "RecipeTemplate": template}
    for model in (SpecFile.__name__, "StageConfig"):
        recipe = definitions[model]["properties"]["recipe"]
        definitions[model]["properties"]["recipe"] = {
            "$ref": "#/$defs/RecipeTemplate",
            "description": recipe["description"],
        }
    return _document("Search spec", schema | {"$defs": definitions})


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, with the section `provenance` of an exported one."""
    schema, section = _plain_schema(), Provenance.model_json_schema()
    schema["$defs"] |= section.pop("$defs") | {Provenance.__name__: section}
    schema["properties"][KEY] = {"$ref": f"#/$defs/{Provenance.__name__}"}
    return _document("Recipe", schema)


def suite_schema() -> dict[str, Any]:
    """JSON Schema of a suite."""
    schema = SuiteFile.model_json_schema()
    task = schema["$defs"]["TaskEntry"]
    task["required"] = [key for key in task["required"] if key != "chance"]  # optional for some kinds of task
    return _document("Suite", schema)


def _plain_schema() -> dict[str, Any]:
    """JSON Schema of a recipe as it is written: entries of `models` may stand for the checkpoints of a run."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    definitions[Checkpoints.__name__] = Checkpoints.model_json_schema()
    for holder in (schema, definitions[Module.__name__]):
        models = holder["properties"]["models"]
        models["items"] = {"anyOf": [models["items"], {"$ref": f"#/$defs/{Checkpoints.__name__}"}]}
    return schema


def _template_schema() -> dict[str, Any]:
    """JSON Schema of a recipe in which search parameters may replace values."""
    schema = _plain_schema()
    for key in HOLE_KEYS:
        found = schema["properties"][key]
        found["anyOf"] = [*found["anyOf"], HOLE]
    seed = schema["properties"]["seed"]
    plain = {key: seed.pop(key) for key in list(seed) if key not in ("description", "default")}
    seed["anyOf"] = [plain, HOLE]
    source = schema["$defs"]["Source"]["properties"]["model"]
    named = {key: source.pop(key) for key in list(source) if key != "description"}
    source["anyOf"] = [named, SourceHole.model_json_schema()]
    return schema


def _document(title: str, schema: dict[str, Any]) -> dict[str, Any]:
    cleaned: dict[str, Any] = _without_titles(schema)
    return {"$schema": DIALECT, "title": title, **cleaned}


def _without_titles(node: Any) -> Any:
    """Drop the titles that pydantic derives from names; `title` stays where it is the name of a property."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key != "title" or not isinstance(value, str)}
    return {key: _without_titles(value) for key, value in kept.items()}
