"""MLflow's REST API as anybody may call it: requests and an account."""

from collections.abc import Iterator
from typing import Any

import requests

from evosearch.errors import SearchError

TIMEOUT_S = 30.0


class Rest:
    """One server, as one account; without one, as nobody."""

    def __init__(self, uri: str, account: tuple[str, str] | None = None) -> None:
        self._uri, self._account = uri, account

    def call(self, method: str, path: str, /, **content: Any) -> requests.Response:
        """What the server answers to `/api/2.0/mlflow/PATH`; a GET's content are its parameters."""
        how = {"params": content} if method == "GET" else {"json": content}
        url = f"{self._uri}/api/2.0/mlflow/{path}"
        return requests.request(method, url, auth=self._account, timeout=TIMEOUT_S, allow_redirects=False, **how)

    def get(self, path: str, /, **parameters: Any) -> dict[str, Any]:
        return _answer(self.call("GET", path, **parameters))

    def post(self, path: str, /, **content: Any) -> dict[str, Any]:
        return _answer(self.call("POST", path, **content))

    def runs(self, experiment: str) -> Iterator[dict[str, Any]]:
        """All runs of an experiment, by its name."""
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
