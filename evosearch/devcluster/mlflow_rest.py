"""Minimal client of MLflow's REST API, with authentication."""

from collections.abc import Iterator
from typing import Any

import requests

from evosearch.errors import SearchError

TIMEOUT_S = 30.0


class Rest:
    """Client of one MLflow server.

    Args:
        uri: URL of the server.
        account: Name and password; None for requests without authentication.
    """

    def __init__(self, uri: str, account: tuple[str, str] | None = None) -> None:
        self._uri, self._account = uri, account

    def call(self, method: str, path: str, /, **content: Any) -> requests.Response:
        """Send a request to `/api/2.0/mlflow/PATH`; `content` is the query of a GET, otherwise the JSON body."""
        is_get = method == "GET"
        return requests.request(
            method,
            f"{self._uri}/api/2.0/mlflow/{path}",
            params=content if is_get else None,
            json=None if is_get else content,
            auth=self._account,
            timeout=TIMEOUT_S,
            allow_redirects=False,
        )

    def get(self, path: str, /, **parameters: Any) -> dict[str, Any]:
        """Return the JSON response to a GET.

        Raises:
            SearchError: The server answers with an error.
        """
        return _answer(self.call("GET", path, **parameters))

    def post(self, path: str, /, **content: Any) -> dict[str, Any]:
        """Return the JSON response to a POST.

        Raises:
            SearchError: The server answers with an error.
        """
        return _answer(self.call("POST", path, **content))

    def runs(self, experiment: str) -> Iterator[dict[str, Any]]:
        """Yield all runs of an experiment, given by name."""
        found = self.get("experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
        token = ""
        while True:
            page = self.post("runs/search", experiment_ids=[found], max_results=1000, page_token=token)
            yield from page.get("runs", ())
            token = page.get("next_page_token", "")
            if not token:
                return


def _answer(response: requests.Response) -> dict[str, Any]:
    if not response.ok:
        raise SearchError(f"MLflow: {response.request.method} {response.url}: {response.status_code} {response.text}")
    found: dict[str, Any] = response.json()
    return found
