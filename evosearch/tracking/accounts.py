"""Limits on MLflow's client: the user's account goes only to tracking servers that the user named.

MLflow sends the account (MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN, ~/.mlflow/credentials, signatures) to every HTTP
server that a tracking or artifact URI names, and writes artifacts where the server says, with that storage's account.
"""

import os
from typing import Any

from evosearch.errors import TrackingError
from evosearch.origins import HOSTS, Secret, how_to_allow, may_receive, origin_of
from evosearch.search.ledger.server_access import refuse_settings, withheld

WEB = ("http://", "https://")
DATABASES = ("mysql", "mssql")
NONE = "evosearch-none"  # name of the authentication that sends nothing, not even an entry of ~/.netrc
ACCOUNT = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_AUTH")
PROXIED = "mlflow-artifacts:"  # artifacts that pass through the tracking server itself
_unnamed: set[str] = set()  # servers in use that the user did not name


def is_named(uri: str) -> bool:
    """Return whether the user named the server of a tracking or artifact URI."""
    return may_receive(Secret.MLFLOW, origin_of(uri))


def check_database(uri: str) -> None:
    """Check the URI of a database as tracking store, other than SQLite.

    Raises:
        TrackingError: It has settings that are not allowed, or is a database, other than PostgreSQL, that the user did
            not name: passwords for these are not limited.
    """
    import sqlalchemy as sa

    kind = uri.partition(":")[0].partition("+")[0]
    if kind == "postgresql":
        try:
            parsed = sa.make_url(uri)
        except (sa.exc.ArgumentError, ValueError):
            raise TrackingError("tracking.uri", "not a database URL", "postgresql://USER@HOST/NAME") from None
        refuse_settings(parsed, "tracking.uri", TrackingError)
    elif kind in DATABASES and not is_named(uri):
        what = "only a file names this database, so it is not connected to"
        raise TrackingError("tracking.uri", what, next=how_to_allow(Secret.MLFLOW, origin_of(uri), uri))


def kept_account(uri: str) -> str | None:
    """Return a sentence on an account or password of the user that is not sent to a store; None if none is."""
    if uri.startswith("postgresql"):
        import sqlalchemy as sa

        return withheld(sa.make_url(uri))
    given = any(os.environ.get(name) for name in ACCOUNT) or os.path.exists(os.path.expanduser("~/.mlflow/credentials"))
    if not uri.startswith(WEB) or not given or is_named(uri):
        return None
    return how_to_allow(Secret.MLFLOW, origin_of(uri), uri)


def refuse_storage(uri: str, artifacts: str) -> None:
    """Check where a tracking server wants artifacts: one that the user did not name may only store them itself.

    Otherwise it could have files written here, or elsewhere with the user's account of another storage.

    Raises:
        TrackingError: It names another storage.
    """
    if not uri.startswith(WEB) or is_named(uri) or artifacts.startswith(PROXIED):
        return
    kind = artifacts.partition(":")[0] if ":" in artifacts else "file"
    what = f"this server wants artifacts in '{kind}:', which only a server that you named may choose"
    place = origin_of(uri)
    raise TrackingError("tracking.uri", what, next=f"If you trust it: {HOSTS}={place}" if place else None)


def limit_accounts() -> None:
    """Limit MLflow's client in this process; called after each import, has an effect once."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as artifacts
    from mlflow.tracking.request_auth.registry import _request_auth_provider_registry as providers
    from mlflow.utils import credentials

    if getattr(credentials.MlflowHostCreds, "limited", False):
        return
    credentials.MlflowHostCreds = _limited(credentials.MlflowHostCreds)
    artifacts.get_artifact_repository = _checked(artifacts.get_artifact_repository)
    providers.register(_NoAccount)


class _NoAccount:
    """MLflow's interface for authentication, without any: an explicit one keeps `requests` from reading ~/.netrc."""

    def get_name(self) -> str:
        return NONE

    def get_auth(self) -> Any:
        return lambda request: request


def _limited(creds: Any) -> Any:
    """Wrap the class of a server's address and account: without the account for servers that the user did not name."""

    def make(host: str | None = None, **account: Any) -> Any:
        if host is None or is_named(host):
            return creds(host=host, **account)
        _unnamed.add(host)
        kept = ("ignore_tls_verification", "server_cert_path")
        return creds(host=host, auth=NONE, **{key: value for key, value in account.items() if key in kept})

    make.limited = True  # type: ignore[attr-defined]
    return make


def _checked(find: Any) -> Any:
    """Wrap the lookup of an artifact storage: a server that the user did not name may only store artifacts itself."""

    def get(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        store = tracking_uri or registry_uri or next(iter(_unnamed), "")
        if not artifact_uri.startswith(("runs:", "models:")):  # looked up, then checked again
            refuse_storage(store, artifact_uri)
        return find(artifact_uri, tracking_uri, registry_uri)

    return get
