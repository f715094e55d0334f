"""Requests: what a model is asked, as files that need no lm-eval to be read.

A request set is one folder, named by its content: ``manifest.json`` and one ``<task>.jsonl.gz`` per leaf task.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from massive_sft.core import files
from massive_sft.core.errors import Corrupt
from massive_sft.core.fingerprint import fingerprint
from massive_sft.evaluation.sampling import Sampling

log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(frozen=True)
class Request:
    """What every kind of request has.

    Attributes:
        index: position in the task's list, from 0.
        doc: lm-eval's document id.
        choice: which of the document's requests this is (lm-eval's ``idx``).
        doc_hash: hash of the document, checked again before it is scored.
        repeats: how often the response counts; greedy decoding computes it once.
    """

    kind: ClassVar[str]
    index: int
    doc: int
    choice: int
    doc_hash: str
    repeats: int


@dataclass(frozen=True)
class Likelihood(Request):
    """The log-probability of ``continuation`` after ``context``.

    ``joined``: the context ends in a line's end of a template, which some tokenizers join to the text before it, as in
    training; lm-eval's rule would feed that text without it.
    """

    kind: ClassVar[str] = "loglikelihood"
    context: str
    continuation: str
    joined: bool = False


@dataclass(frozen=True)
class Rolling(Request):
    """The log-probability of a whole ``text``, in windows of the model's length."""

    kind: ClassVar[str] = "loglikelihood_rolling"
    text: str


@dataclass(frozen=True)
class Generation(Request):
    """Text after ``context``, up to ``max_tokens`` tokens, ended before the first of the ``until`` strings.

    ``lead`` is what training has between the context and the answer, and encodes with the answer: white space at a
    template's end, which tokenizers join to a word, or what a chat template writes there. The model writes it, and it
    is no part of the answer.

    Attributes:
        sampling: how its tokens are drawn; None: each is the likeliest. Each answer of a task that wants several is a
            request of its own.
    """

    kind: ClassVar[str] = "generate_until"
    context: str
    until: tuple[str, ...]
    max_tokens: int
    lead: str = ""
    sampling: Sampling | None = None


KINDS: dict[str, type[Request]] = {kind.kind: kind for kind in (Likelihood, Rolling, Generation)}


@dataclass(frozen=True)
class Leaf:
    """One leaf task of a request set.

    Attributes:
        name: lm-eval's task name.
        version: the task's version, as text.
        config: hash of the task's configuration without paths, and of the code it names.
        count: requests.
        documents: documents.
        checksum: SHA-256 of the requests' canonical lines.
    """

    name: str
    version: str
    config: str
    count: int
    documents: int
    checksum: str


@dataclass(frozen=True)
class RequestSet:
    """The requests of one benchmark at one number of shots under one template.

    Attributes:
        folder: where the files are.
        label: the benchmark's name for people, e.g. ``mmlu-5shot``.
        shots: examples before each question; None where the tasks differ.
        limit: as declared.
        sampler, sampler_seed: as declared; ``None`` where they change nothing (no shots; first_n draws nothing).
        template_kind: ``none``, ``training`` or ``chat``.
        template_text: the training prompt template, or the tokenizer's chat template; ``None`` for ``none``.
        leaves: the leaf tasks, by name.
        provenance: lm-eval's version and the like; not part of identity.
        generates: whether answers are generated; follows from the leaves' requests.
        marked_lead: whether a special token, which no answer's text holds, stands in what a model writes before its
            answers.
        groups: by name, what each group that combines scores is of: ``task_identity.group_content``.
    """

    folder: Path
    label: str
    shots: int | None
    limit: int | None
    sampler: str | None
    sampler_seed: int | None
    template_kind: str
    template_text: str | None
    leaves: tuple[Leaf, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    generates: bool = False
    marked_lead: bool = False
    groups: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return the content that names the set: no path, no label, no library version.

        ``marked_lead`` and ``groups`` are there only where there is anything of the kind.
        """
        return {
            "leaves": [asdict(leaf) for leaf in self.leaves],
            "shots": self.shots,
            "limit": self.limit,
            "sampler": self.sampler,
            "sampler_seed": self.sampler_seed,
            "template_kind": self.template_kind,
            "template_text": self.template_text,
            **{name: value for name in _WHERE_ANY if (value := getattr(self, name))},
        }

    @property
    def id(self) -> str:
        """The set's id, also its folder's name."""
        return fingerprint(self.identity())


def to_line(request: Request) -> str:
    """Return a request as JSON; ``joined`` and ``sampling`` only where it is so: other sets are as they were."""
    entry = {"kind": request.kind, **vars(request)}
    if not entry.get("joined", True):
        del entry["joined"]
    if "sampling" in entry:
        drawn = entry.pop("sampling")
        entry |= {} if drawn is None else {"sampling": vars(drawn)}
    return json.dumps(entry, ensure_ascii=False, sort_keys=True)


def from_line(line: str) -> Request:
    entry = json.loads(line)
    kind = KINDS[entry.pop("kind")]
    if "until" in entry:
        entry["until"] = tuple(entry["until"])
    if "sampling" in entry:
        entry["sampling"] = Sampling(**entry["sampling"])
    return kind(**entry)


def checksum(lines: Sequence[str]) -> str:
    """Return the SHA-256 of lines joined by newlines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_set(root: Path, identity: RequestSet, requests: dict[str, list[Request]]) -> RequestSet:
    """Write a request set under ``root/<id>``; the manifest last. A sound one that is there is left as it is.

    Returns the set under the label that it was asked by: another benchmark with equal requests may have written it.
    """
    folder = root / identity.id
    complete = RequestSet(**{**vars(identity), "folder": folder})
    if _is_sound(folder):
        return complete
    for leaf in complete.leaves:
        lines = "\n".join(map(to_line, requests[leaf.name]))
        files.write_bytes(requests_path(folder, leaf.name), gzip.compress(lines.encode(), mtime=0))
    manifest = {
        "schema": SCHEMA,
        "id": identity.id,
        "label": identity.label,
        **identity.identity(),
        "provenance": identity.provenance,
        "generates": identity.generates,
    }
    files.write_json(folder / "manifest.json", manifest)
    return complete


def _is_sound(folder: Path) -> bool:
    try:
        found = read_set(folder)
        for leaf in found.leaves:
            read_requests(found, leaf)
    except FileNotFoundError:
        return False
    except Corrupt as error:
        log.warning("%s; it is built again", error)
        return False
    return True


_WHERE_ANY = ("marked_lead", "groups")
_DESCRIBED = ["label", "shots", "limit", "sampler", "sampler_seed", "template_kind", "template_text", "provenance"]


def read_set(folder: Path) -> RequestSet:
    """Read a request set's manifest. Raises ``Corrupt`` when its content is not what its id says."""
    path = folder / "manifest.json"
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise Corrupt(f"{path}: is no manifest of requests of schema {SCHEMA}")
    try:
        leaves = tuple(Leaf(**leaf) for leaf in manifest["leaves"])
        described = {key: manifest[key] for key in _DESCRIBED}
        # Sets of before it was told have ids of their own where they generate.
        described |= {key: manifest[key] for key in ("generates", *_WHERE_ANY) if key in manifest}
        loaded = RequestSet(folder=folder, leaves=leaves, **described)
        if loaded.id != manifest["id"]:
            raise Corrupt(f"{path}: its content does not match its id")
    except (KeyError, TypeError) as error:
        raise Corrupt(f"{path}: is no manifest of requests ({error})") from error
    return loaded


def read_requests(requests: RequestSet, leaf: Leaf) -> list[Request]:
    """Read one leaf task's requests. Raises FileNotFoundError, ``Corrupt`` when they do not match the manifest."""
    path = requests_path(requests.folder, leaf.name)
    lines = files.read_compressed_lines(path)
    if checksum(lines) != leaf.checksum:
        raise Corrupt(f"{path}: does not match its checksum")
    return [from_line(line) for line in lines]


def requests_path(folder: Path, leaf: str) -> Path:
    return folder / f"{file_name(leaf)}.jsonl.gz"


def file_name(task: str) -> str:
    """Return a task's name as a file name (lm-eval puts ``::`` and ``/`` into some)."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in task)
