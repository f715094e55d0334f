"""Where a result came from: code, command line, versions and machine, captured once and without secrets."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from massive_sft.core.fingerprint import hash_file

HIDDEN = "***"
LIBRARIES = (
    "massive-sft", "torch", "transformers", "deepspeed", "peft", "tokenizers", "safetensors", "datasets", "lm-eval",
    "numpy", "pydantic", "ray", "mlflow", "optuna",
)  # fmt: skip

_SECRET_NAME = (
    r"(?:[\w.-]*(?:token|secret|password|passwd|passphrase)|(?:[\w.-]*[._-])?(?:pwd|key|auth|authorization|credentials?|cookie)"
    r"|[\w.-]*(?:api|access|secret|private|signing|account)[-_]?key)"
)
# Names that end like a secret and are none; hiding them would make tokenizer errors unreadable.
_HARMLESS_NAME = r"(?:[\w.-]*[._-])?(?:bos|eos|pad|unk|sep|cls|mask|special|next|per|new|max|image)[-_]?token"
# Between a name and its value, and the value. Quotes are escaped, once or more often, in JSON or a repr that stands in
# another; one that is not closed, where a text was cut, reaches to the end of the line.
_IS = r"(\\*[\"']?\s*[=:]\s*)"
_VALUE = r"(?:(?P<quote>\\*[\"'])(?:[\s\S]*?(?<!\\)(?P=quote)|.*)|[^\s\"'&,;}]+)"
_NAMED = re.compile(
    rf"(?i)(?<![\w.-])(?!{_HARMLESS_NAME}\b)(-{{0,2}}{_SECRET_NAME}){_IS}"
    rf"(?:(?:bearer|basic|token|apikey|digest|negotiate)\s+)?{_VALUE}"
)
_HEADER = re.compile(rf"(?i)(?<![\w.-])((?:[\w.-]*[._-])?authorization){_IS}(?:[a-z][\w-]*[ \t]+)?{_VALUE}")
_FLAG = re.compile(rf"(?i)-{{1,2}}(?!{_HARMLESS_NAME}$){_SECRET_NAME}")
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)[^/\s]*@")
_BEARER = re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]{8,}")
_SIGNED = re.compile(r"(?i)([?&](?:x-(?:amz|goog)-)?sig(?:nature)?=)[^\s\"'&]+")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|xox[abprs]-[\w-]{8,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
)


def redact(text: str) -> str:
    """Return ``text`` with what looks like a secret replaced by ``***``.

    Hidden are the value of ``name=value`` or ``name: value`` whose name is a token, secret, password or key,
    the ``user:password`` of a URI, authorization headers of any scheme, the signature of a URI, and tokens of
    well-known services by their shape.
    """
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
    text = _SIGNED.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def has_token(text: str) -> bool:
    """Whether a text holds a token of a well-known service, by its shape."""
    return _SHAPES.search(text) is not None


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with secrets hidden, also where flag and value are two arguments (``--token abc``)."""
    shown: list[str] = []
    for position, argument in enumerate(arguments):
        after_flag = position > 0 and _FLAG.fullmatch(arguments[position - 1])
        shown.append(HIDDEN if after_flag and not argument.startswith("-") else redact(argument))
    return shown


def capture_provenance(sweep_file: Path | None = None) -> dict[str, Any]:
    """Describe this process: what a record keeps of where it came from, as plain JSON values.

    Libraries are looked up by their installed metadata, never imported; one that is not installed is ``None``.
    ``git`` is ``None`` when the package does not run from a repository. Nothing of the environment is kept.
    Takes some 20 ms, so call it once per run. Raises OSError when ``sweep_file`` cannot be read.
    """
    return {
        "captured": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(Path(__file__).parent),
        "argv": shlex.join(redact_arguments(sys.argv)),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "sweep_file": None if sweep_file is None else {"name": sweep_file.name, "sha256": hash_file(sweep_file)},
    }


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, str | None] | None:
    # An installed package may lie in a virtual environment inside somebody else's repository: only a tracked
    # file ties this code to that commit.
    if _run_git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, diff = _run_git(folder, "rev-parse", "HEAD"), _run_git(folder, "diff", "HEAD", "--binary")
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }


def _run_git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
