"""URLs are shown without their secrets, wherever their readers see the password end."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from evosearch.errors import LedgerError, TrackingError
from evosearch.redaction import hidden, hidden_in
from evosearch.search.ledger.database_errors import shown
from evosearch.search.ledger.ledger import Ledger

Program = Callable[..., tuple[int, str, str]]
SECRET = "hunter2"
HIDDEN = [
    (f"postgresql://me:{SECRET}@host/db", "postgresql://***@host/db"),
    (f"postgresql://me:hun/{SECRET}@host/db", "postgresql://***@host/db"),  # urlsplit sees no password in it
    (f"postgresql://me:a@{SECRET}@host/db", "postgresql://***@host/db"),
    (f"postgresql+psycopg://me:{SECRET}?[@host:5432/db", "postgresql+psycopg://***@host:5432/db"),
    (f"postgresql://:{SECRET}@host/db", "postgresql://***@host/db"),
    (f"postgresql://me@host/db?password={SECRET}", "postgresql://me@host/db?***"),
    (f"https://{SECRET}@host:5000", "https://***@host:5000"),
    (f"HTTPS://me:a/{SECRET}@host", "HTTPS://***@host"),
    (f"https://host:5000?api_key={SECRET}", "https://host:5000?***"),
]
WITHOUT_SECRETS = [
    "postgresql://me@host:5432/db",
    "http://[::1]:5000",
    "sqlite:////home/me@work/runs/mlflow.db?mode=ro",
    "ray://head:10001",
    "databricks",
    "jsonl:events.jsonl",
]


@pytest.mark.parametrize(("url", "redacted"), HIDDEN)
def test_secrets_are_left_out(url: str, redacted: str) -> None:
    assert hidden(url) == redacted
    assert hidden_in(f"no way to '{url}', says the server (see {url}).") == (
        f"no way to '{hidden(url)}', says the server (see {redacted})."
    )


@pytest.mark.parametrize("url", WITHOUT_SECRETS)
def test_urls_without_secrets_are_shown_unchanged(url: str) -> None:
    assert hidden(url) == url
    assert hidden_in(f"({url}): no such place, ask me@work.") == f"({url}): no such place, ask me@work."


def test_text_that_is_not_a_url_is_redacted_too() -> None:
    assert hidden(f"postgresql//me:{SECRET}@host/db") == "postgresql//***@host/db"
    assert hidden(f"me:{SECRET}@host") == "***@host"


def test_a_password_with_a_space_ends_at_the_sign() -> None:
    assert hidden_in("Failed to parse: https://me:hun ter2@host/x") == "Failed to parse: https://***@host/x"
    assert hidden_in("at http://host:5000/x failed for a@b") == "at http://host:5000/x failed for a@b"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_whatever_sqlalchemy_takes_for_a_password_is_hidden(text: str) -> None:
    url = f"postgresql://me:<{text}>@host/db"
    assert f"<{text}>" not in hidden(url)
    assert f"<{text}>" not in hidden_in(f"cannot reach {url}")
    made = sa.URL.create("postgresql", "me", f"<{text}>", "host", database="db", query={"password": text + "<>"})
    assert shown(made) == "postgresql://***@host/db?***"


def test_no_command_repeats_a_ledgers_password(evosearch: Program, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # it does not listen, so connections are refused at once
        port = bound.getsockname()[1]
        for url in (f"postgresql://me:{SECRET}@127.0.0.1:{port}/db", f"postgresql://me:a/{SECRET}@127.0.0.1:{port}/db"):
            code, out, err = evosearch("status", "--ledger", url)
            assert code == 2
            assert f"postgresql://***@127.0.0.1:{port}/db cannot be used" in err
            assert SECRET not in out + err
    code, out, err = evosearch("status", "--ledger", f"nonsense//me:a/{SECRET}@host/db")
    assert (code, SECRET in out + err) == (2, False)
    assert "got 'nonsense//***@host/db'" in err


def test_the_title_of_a_ledgers_searches_names_no_password(evosearch: Program, postgres_url: str) -> None:
    Ledger.open(postgres_url, "here").close()
    url = sa.make_url(postgres_url).set(password=f"a/{SECRET}").render_as_string(hide_password=False)
    code, out, err = evosearch("status", "--ledger", f"{postgres_url}?application_name={SECRET}")
    assert code == 0, err
    assert out.split()[:3] == ["no", "searches", "in"]
    assert out.split()[3].startswith("postgresql://")
    assert SECRET not in out + err
    code, out, err = evosearch("status", "--ledger", url)
    assert code == 2, out
    assert "cannot be used" in err
    assert SECRET not in out + err


def test_stores_that_are_servers_are_queried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Databricks is a server: a read creates no tables there, and shows whether the account is accepted."""
    from evosearch.tracking.access import check_read_access

    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(TrackingError, match="databricks: MlflowException: Reading Databricks credential"):
        check_read_access("databricks", "night", None)
    monkeypatch.setenv("EVOSEARCH_HOSTS", "mysql://host:3306")
    text = check_read_access(f"mysql://me:{SECRET}@host/db", "night", None)
    place = "MLflow at mysql://***@host/db"
    with pytest.raises(TrackingError, match="only a file names this database") as refused:
        check_read_access(f"mysql://me:a/{SECRET}@elsewhere/db", "night", None)
    assert SECRET not in str(refused.value)
    assert text == f"{place} is not opened before the search starts, because that would create its tables"


def test_a_malformed_ledger_is_refused_without_its_password() -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(f"postgresql://me:{SECRET}@host:many/db", "ledger")
    assert SECRET not in str(caught.value)
