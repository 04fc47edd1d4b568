"""Signed attestation of an exported recipe: an in-toto statement with SLSA provenance in a DSSE envelope.

The statement names the recipe's file and the merged weights by digest, the models that they were made of, and the
scores. `securesystemslib` signs with a key of the user's, without a network; it is imported when it is needed.

    in-toto Statement v1, SLSA provenance v1: https://slsa.dev/spec/v1.0/provenance · DSSE v1
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from evosearch.errors import InputError
from evosearch.recipe.provenance import Provenance
from evosearch.untrusted import read_text

SUFFIX = ".intoto.jsonl"  # of the file next to the recipe's
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:evosearch:merge:v1"
CONTENT = "contentSha256"  # digest of weights that does not depend on files, see `checkpoints.digest`
INSTALL = "Install it: pip install 'evosearch[sign]'"
MAX_BYTES = 2**22
PRIVATE_KEY = "A private key without a password, as PEM (Ed25519, ECDSA or RSA): openssl genpkey -algorithm ed25519"
PUBLIC_KEY = "A public key as PEM: openssl pkey -in KEY -pubout"


def attestation_of(recipe: Path) -> Path:
    """Return the path of a recipe's attestation."""
    return recipe.with_name(recipe.name + SUFFIX)


def is_attestation(file: Path) -> bool:
    """Return whether a file looks like an attestation; False if there is none."""
    try:
        data = json.loads(read_text(file, InputError, MAX_BYTES))
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("payloadType") == PAYLOAD_TYPE


def statement_of(content: bytes, name: str, recorded: Provenance) -> dict[str, Any]:
    """Return the statement on a recipe's file.

    Args:
        content: The recipe's file.
        name: Its name.
        recorded: Its section `provenance`, with references as in the file.
    """
    dependencies = [
        {"name": one.model, "digest": {CONTENT: one.content_sha256} if one.content_sha256 else dict(one.files)}
        for one in recorded.inputs
    ]
    scores = {
        split: {key: getattr(score, key) for key in ("value", "lower", "upper", "n")}
        for split, score in recorded.scores.items()
    }
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": hashlib.sha256(content).hexdigest()}},
            {"name": "weights", "digest": {CONTENT: recorded.weights_sha256}},
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe_id": recorded.recipe_id, "seeds": dict(recorded.seeds)},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": "urn:evosearch", "version": {"evosearch": recorded.evosearch, **recorded.versions}},
                "metadata": {"invocationId": f"{recorded.search_id}/{recorded.candidate}"},
                "byproducts": [{"name": "scores", "annotations": scores}],
            },
        },
    }


def check_key(key: Path) -> None:
    """Check that statements can be signed with a key, before anything is exported.

    Raises:
        InputError: securesystemslib is not installed, or the file is not a private key.
    """
    _signer(key)


def sign(statement: dict[str, Any], key: Path) -> str:
    """Return a signed envelope of a statement, as one line of JSON.

    Args:
        statement: The statement.
        key: File of a private key.

    Raises:
        InputError: securesystemslib is not installed, or the file is not a private key.
    """
    signer = _signer(key)
    from securesystemslib.dsse import Envelope

    envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict()) + "\n"


def signed_statement(file: Path, key: Path) -> tuple[str, dict[str, Any] | None]:
    """Return the id of a public key, and the statement that it signed; None if it did not sign the file's statement.

    Args:
        file: The envelope.
        key: File of the public key.

    Raises:
        InputError: securesystemslib is not installed, the file is not a public key, or not an envelope.
    """
    public = _public_key(key)
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    allowed = "A DSSE envelope with an in-toto statement, as `evosearch export --sign` writes it"
    try:
        envelope = Envelope.from_dict(json.loads(read_text(file, InputError, MAX_BYTES)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        if isinstance(exc, InputError):
            raise
        raise InputError(str(file), "not an attestation", allowed) from None
    try:
        envelope.verify([public], 1)
    except VerificationError:
        return public.keyid, None
    statement = json.loads(envelope.payload)  # of the signer, whom the user trusts
    if envelope.payload_type != PAYLOAD_TYPE or not isinstance(statement, dict):
        raise InputError(str(file), f"signed, but its type is {envelope.payload_type}", allowed)
    return public.keyid, statement


def _signer(key: Path) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner
    except ImportError:
        raise _not_installed("--sign") from None
    data = read_text(key, InputError, MAX_BYTES).encode()
    try:
        return CryptoSigner(load_pem_private_key(data, None))
    except TypeError:
        raise InputError(str(key), "the key has a password", PRIVATE_KEY) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(str(key), "not a private key", PRIVATE_KEY) from None


def _public_key(key: Path) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from securesystemslib.signer import SSlibKey
    except ImportError:
        raise _not_installed("--key") from None
    data = read_text(key, InputError, MAX_BYTES).encode()
    try:
        return SSlibKey.from_crypto(load_pem_public_key(data))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(str(key), "not a public key", PUBLIC_KEY) from None


def _not_installed(option: str) -> InputError:
    return InputError(option, "needs securesystemslib, which is not installed", next=INSTALL)
