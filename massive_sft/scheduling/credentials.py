"""Which files of a folder are credentials, by their names and by the keys in them: those do not travel with a job."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from massive_sft.ledger.provenance import has_token

FOLDERS = frozenset({".aws", ".azure", ".docker", ".gnupg", ".huggingface", ".kube", ".ssh", "gcloud"})
DATA = ("", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".txt", ".csv", ".xml")  # not code of such a name
NAMES = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".git-credentials"),
    *(
        "id_rsa",
        "id_dsa",
        "id_ecdsa",
        "id_ed25519",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.jks",
        "*.keystore",
        "*.kdbx",
    ),
    *("kubeconfig", "kubeconfig.*", "service-account*.json", "service_account*.json", "auth_token", "*.token"),
    *(f"{stem}{end}" for stem in ("credentials", "secret", "secrets") for end in DATA),
)
TEMPLATES = ("*.example", "*.sample", "*.template")  # of such files, to be filled in
SCANNED_BYTES = 1_000_000  # larger files are data
PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----\s+[A-Za-z0-9+/=:]")


def credential_by_name(name: str) -> str | None:
    """Return why a file, by its path below the packaged folder, is one of credentials; None where it is none."""
    path = PurePosixPath(name)
    for folder in path.parts[:-1]:
        if folder in FOLDERS:
            return f"lies in {folder}, a folder of credentials"
    fits = next((pattern for pattern in NAMES if fnmatch(path.name.lower(), pattern)), None)
    if fits is None or any(fnmatch(path.name.lower(), pattern) for pattern in TEMPLATES):
        return None
    return f"has a name of credentials ({fits})"


def credential_by_content(path: Path, size: int) -> str | None:
    """Return which key a text file holds; None for none, for data and where it cannot be read."""
    if size > SCANNED_BYTES:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if b"\0" in content[:8192]:
        return None
    if PRIVATE_KEY.search(content):
        return "holds a private key"
    return "holds a token" if has_token(content.decode("utf-8", errors="replace")) else None
