"""Signed attestations of exported recipes: in-toto statements in DSSE envelopes, by a key of the user's."""

import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from evosearch.search.progress import Silent
from evosearch.service.run import run

pytest.importorskip("securesystemslib", reason="the extra `sign` is not installed")

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def search(world: World) -> str:
    run(world("night", budget={"candidates": 6}), Silent())
    return "night"


def keys(folder: Path, kind: str = "ed25519") -> tuple[Path, Path]:
    """Write a new key pair; return its files."""
    private = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    secret, public = folder / f"{kind}.pem", folder / f"{kind}.pub"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return secret, public


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_signed_recipe_is_verified_and_any_change_is_found(
    search: str, evosearch: Evosearch, tmp_path: Path, kind: str
) -> None:
    secret, public = keys(tmp_path, kind)
    out = tmp_path / "specs" / "best.yaml"
    code, _, err = evosearch("export", search, "--candidate", "3", "-o", out, "--sign", secret)
    assert code == 0, err
    signed = out.with_name("best.yaml.intoto.jsonl")
    statement = json.loads(base64.b64decode(json.loads(signed.read_text())["payload"]))
    recorded = yaml.safe_load(out.read_text())["provenance"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"][1]["digest"] == {"contentSha256": recorded["weights_sha256"]}
    build = statement["predicate"]["buildDefinition"]
    assert [one["name"] for one in build["resolvedDependencies"]] == [one["model"] for one in recorded["inputs"]]
    (scores,) = statement["predicate"]["runDetails"]["byproducts"]
    assert scores["annotations"]["search"]["value"] == recorded["scores"]["search"]["value"]
    assert str(tmp_path) not in json.dumps(statement)

    code, text, err = evosearch("verify", out, "--key", public, "--json")
    assert code == 0, err
    assert json.loads(text)["compared"] == ["signature", "inputs", "weights"]
    assert json.loads(text)["signed_by"]

    other = keys(tmp_path / "specs", kind)[1]
    code, text, _ = evosearch("verify", out, "--key", other, "--json")
    assert code == 1
    assert [one["kind"] for one in json.loads(text)["differences"]] == ["signature"]

    out.write_text(out.read_text() + "# a comment\n")
    code, text, _ = evosearch("verify", out, "--key", public)
    assert code == 1
    assert f"signature {signed}: best.yaml: recorded" in text.replace("\n", "")

    payload = json.loads(signed.read_text())
    payload["payload"] = base64.b64encode(base64.b64decode(payload["payload"]) + b" ").decode()
    signed.write_text(json.dumps(payload))
    assert evosearch("verify", out, "--key", public)[0] == 1


def test_a_checkpoint_has_its_attestation_beside_its_recipe(search: str, evosearch: Evosearch, tmp_path: Path) -> None:
    secret, public = keys(tmp_path)
    out = tmp_path / "model"
    command = ("export", search, "--candidate", "3", "--format", "checkpoint", "-o", out)
    assert evosearch(*command, "--sign", secret)[0] == 0
    code, _, err = evosearch("verify", out / "recipe.yaml", "--key", public)
    assert code == 0, err
    assert evosearch(*command, "--overwrite")[0] == 0
    assert not (out / "recipe.yaml.intoto.jsonl").exists()
    code, _, err = evosearch("verify", out / "recipe.yaml", "--key", public)
    assert code == 2
    assert "recipe.yaml.intoto.jsonl: no such file" in err


def test_an_export_without_a_key_removes_the_attestation_of_the_one_that_it_replaces(
    search: str, evosearch: Evosearch, tmp_path: Path
) -> None:
    secret, _ = keys(tmp_path)
    out = tmp_path / "best.yaml"
    assert evosearch("export", search, "--candidate", "3", "-o", out, "--sign", secret)[0] == 0
    assert evosearch("export", search, "--candidate", "2", "-o", out, "--overwrite")[0] == 0
    beside = out.with_name("best.yaml.intoto.jsonl")
    assert not beside.exists()
    beside.write_text("mine")
    code, _, err = evosearch("export", search, "--candidate", "3", "-o", out, "--overwrite", "--sign", secret)
    assert code == 2
    assert "best.yaml.intoto.jsonl: existing file is not an attestation" in err
    assert evosearch("export", search, "--candidate", "2", "-o", out, "--overwrite")[0] == 0
    assert beside.read_text() == "mine"


def test_wrong_keys_are_refused_before_anything_is_written(
    search: str, evosearch: Evosearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, public = keys(tmp_path)
    locked = tmp_path / "locked.pem"
    key = ed25519.Ed25519PrivateKey.generate()
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    out = tmp_path / "best.yaml"
    command = ("export", search, "--candidate", "3", "-o", out)
    cases = (
        ((locked,), "locked.pem: the key has a password"),
        ((public,), "ed25519.pub: not a private key"),
        ((tmp_path / "none",), "none: "),
        ((secret, "--format", "mergekit"), "--sign: not valid with --format mergekit"),
    )
    for (file, *options), text in cases:
        code, _, err = evosearch(*command, "--sign", file, *options)
        assert code == 2
        assert text in err
        assert not out.exists()
    assert evosearch(*command, "--sign", secret)[0] == 0
    code, _, err = evosearch("verify", out, "--key", secret)
    assert code == 2
    assert "not a public key" in err
    shutil.copy(out, out.with_name("best.yaml.intoto.jsonl"))
    code, _, err = evosearch("verify", out, "--key", public)
    assert code == 2
    assert "best.yaml.intoto.jsonl: not an attestation" in err

    for name in [one for one in sys.modules if one.partition(".")[0] == "securesystemslib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "securesystemslib.signer", None)  # as if it were not installed
    code, _, err = evosearch(*command, "--overwrite", "--sign", secret)
    assert code == 2
    assert "--sign: needs securesystemslib, which is not installed" in err
    assert "pip install 'evosearch[sign]'" in err
