"""The report of a search as artifact of its run in MLflow."""

from evosearch.tracking.client import as_tracking_errors, connect, search_runs, sqlite_file

REPORT_FILE = "report.html"


def log_report(uri: str, search_id: str, page: str) -> bool:
    """Log the page as artifact of the search's run, in place of an earlier one.

    Args:
        uri: Tracking URI.
        search_id: The search.
        page: HTML.

    Returns:
        Whether the search has a run.

    Raises:
        TrackingError: The store cannot be written.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return False  # connecting would create it
    with as_tracking_errors(uri):
        client = connect(uri)
        runs = search_runs(client, search_id)
        for run in runs[:1]:
            client.log_text(run.info.run_id, page, REPORT_FILE)
    return bool(runs)
