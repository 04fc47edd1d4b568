"""Registered models in MLflow: promoted versions and the alias of the champion."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.errors import TrackingError
from evosearch.redaction import hidden
from evosearch.tracking.client import as_tracking_errors, connect, pages, run_ids, search_runs
from evosearch.tracking.recipe_tags import RECIPE_FILE
from evosearch.tracking.roles import CHAMPION, FORMER, ROLE
from evosearch.tracking.version_texts import FOLDER, FORCED, REASON, VersionTexts

ALIAS = "champion"
PROMOTED_AGAIN = "promoted_again"  # tag of a version that became the champion again: why


@dataclass(frozen=True)
class Champion:
    """The version that the alias `champion` points to."""

    version: str
    candidate: str
    recipe_id: str
    search_id: str
    source: str  # URI of its artifacts
    tags: Mapping[str, str]


class Registry:
    """The registered models of a tracking store.

    All methods raise `TrackingError` if the store cannot be reached or refuses the request.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def register(
        self,
        name: str,
        *,
        search_id: str,
        candidate: str,
        recipe_id: str,
        artifact_dir: Path,
        tags: Mapping[str, str] | None = None,
        texts: VersionTexts | None = None,
    ) -> str:
        """Upload a folder, register it as a version of a model, and make it the champion.

        A candidate that is already registered under this name with this recipe is not uploaded again; only the alias is
        moved to it.

        Args:
            name: Name of the registered model.
            search_id: Search of the candidate.
            candidate: The promoted candidate; its run must be mirrored.
            recipe_id: Id of its recipe.
            artifact_dir: Folder with the recipe, and optionally the checkpoint.
            tags: Additional tags of the version.
            texts: Its description, with tags for the same.

        Returns:
            The version, a number as a string.
        """
        if not artifact_dir.is_dir():
            raise TrackingError(str(artifact_dir), "not a folder", "The folder of the artifacts to register")
        own = {"search_id": search_id, "candidate_id": candidate, "recipe_id": recipe_id}
        with as_tracking_errors(self._uri):
            client = connect(self._uri)
            _ensure_model(client, name)
            version = _registered(client, name, own)
            if version is None:
                more = dict(tags or {}) | (texts.tags() if texts else {})
                version = self._create(client, name, artifact_dir, more | own, texts)
            elif texts and texts.forced is not None:
                for key in (FORCED, REASON):
                    client.set_model_version_tag(name, version, key, texts.tags()[key])
            _crown(client, name, version)
        return version

    def promote(self, name: str, version: str, reason: str) -> str | None:
        """Make an earlier version the champion again.

        Args:
            name: Name of the registered model.
            version: The version.
            reason: Why; kept as a tag of the version.

        Returns:
            The version that was the champion before; None without one.

        Raises:
            TrackingError: There is no such model or version.
        """
        with as_tracking_errors(self._uri):
            client = connect(self._uri)
            query = f"name = '{_quoted(name)}'"
            found = pages(lambda page_token: client.search_model_versions(query, page_token=page_token))
            known = sorted(int(one.version) for one in found)
            if version not in map(str, known):
                allowed = f"Versions: {', '.join(map(str, known))}" if known else "The name of a registered model"
                raise TrackingError(f"--to {version}", f"'{name}' has no such version", allowed)
            before = _crown(client, name, version)
            client.set_model_version_tag(name, version, PROMOTED_AGAIN, reason)
        return before

    def champion(self, name: str) -> Champion | None:
        """Return the champion of a registered model, or None if the model or its alias does not exist."""
        with as_tracking_errors(self._uri):
            client = connect(self._uri)
            if not client.search_registered_models(f"name = '{_quoted(name)}'"):
                return None
            version = client.get_registered_model(name).aliases.get(ALIAS)
            if version is None:
                return None
            found = client.get_model_version(name, str(version))
        tags = dict(found.tags)
        return Champion(
            version=str(found.version),
            candidate=tags.get("candidate_id", ""),
            recipe_id=tags.get("recipe_id", ""),
            search_id=tags.get("search_id", ""),
            source=found.source,
            tags=tags,
        )

    def recipe(self, champion: Champion) -> str:
        """Return the text of the champion's recipe file, from its artifacts.

        Raises:
            TrackingError: The version has no recipe file, or its artifacts cannot be read.
        """
        with as_tracking_errors(self._uri):
            client = connect(self._uri)
            from mlflow.artifacts import download_artifacts

            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                source = f"{champion.source}/{RECIPE_FILE}"
                path = download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=client.tracking_uri)
                return Path(path).read_text(encoding="utf-8")

    def _create(
        self, client: Any, name: str, folder: Path, tags: dict[str, str], texts: VersionTexts | None = None
    ) -> str:
        run_id = run_ids(self._uri, tags["search_id"], tags["candidate_id"]).get(tags["candidate_id"])
        if run_id is None:
            what = f"candidate {tags['candidate_id']} has no run yet"
            raise TrackingError(hidden(self._uri), what, next="Wait until the mirror has caught up, then promote again")
        # The version is created last: an interrupted upload never becomes a version and is repeated.
        client.log_artifacts(run_id, str(folder), FOLDER)
        info = client.get_run(run_id).info
        own = search_runs(client, tags["search_id"])[0].info.run_id  # created before those of its candidates
        described = texts.description(str(info.experiment_id), run_id, own) if texts else None
        source, more = f"{info.artifact_uri}/{FOLDER}", {"tags": tags, "description": described}
        return str(client.create_model_version(name, source, run_id, await_creation_for=0, **more).version)


def _crown(client: Any, name: str, version: str) -> str | None:
    """Move the alias to a version, and the role to its run; return the version that had it, None without one."""
    before = client.get_registered_model(name).aliases.get(ALIAS)
    client.set_registered_model_alias(name, ALIAS, version)
    former = str(before) if before is not None else None
    if former not in (None, version):
        _set_role(client, name, str(former), FORMER)
    _set_role(client, name, version, CHAMPION)
    return former


def _set_role(client: Any, name: str, version: str, role: str) -> None:
    """Set the role of a version's run, if the run still exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_tag(client.get_model_version(name, version).run_id, ROLE, role)
    except MlflowException as exc:
        if exc.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
            raise


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    if client.search_registered_models(f"name = '{_quoted(name)}'"):
        return
    try:
        client.create_registered_model(name)
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":  # created concurrently by another search
            raise


def _registered(client: Any, name: str, own: Mapping[str, str]) -> str | None:
    query = f"name = '{_quoted(name)}'"
    for version in pages(lambda page_token: client.search_model_versions(query, page_token=page_token)):
        if all(version.tags.get(key) == value for key, value in own.items()):
            return str(version.version)
    return None


def _quoted(name: str) -> str:
    if "'" in name:
        raise TrackingError("promotion.register_as", f"got {name!r}", "A name without quotes")
    return name
