"""A bucket of an object store that a ledger lies in.

What is small and shared are objects under the keys that they have as files of a folder. What must be files in place
(attempts, checkpoints, loss curves while they grow) lies in a folder of this machine, ``local``, and counts once it is
published: its files are uploaded to a prefix that nobody else ever writes to, ``.<name>.<token>`` beside the place,
then ``<place>/published.json``, which names that prefix, is put where none is. So a place is whole or not there, of
several writers one wins, and what a killed one left is a hidden prefix that no pointer names (``leftovers``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from massive_sft.core.errors import Corrupt
from massive_sft.ledger.bucket import Bucket
from massive_sft.ledger.folder_cache import machine_folder

POINTER = "published.json"
SCHEMA = 1
_UPLOAD = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{16}(?=/)")


@dataclass(frozen=True)
class BucketRoot(Bucket):
    """Objects of a bucket below a prefix, as a ``Root``. Its folder on this machine is below ``MASSIVE_SFT_CACHE``."""

    rule: ClassVar[str] = "must be a bucket that can be read and written"

    def at(self, prefix: str) -> BucketRoot:
        """As ``Root.at``."""
        return BucketRoot(self.bucket, self._key(prefix))

    def local(self, prefix: str = "") -> Path:
        """As ``Root.local``."""
        return machine_folder() / "roots" / self.bucket / self._key(prefix)

    def exists(self, key: str = "") -> bool:
        """As ``Root.exists``."""
        return self._is_there(key) if key else bool(self.list())

    def upload(self, folder: Path, prefix: str) -> bool:
        """As ``Storage.upload``; the folder is this machine's copy of the place then."""
        upload = self._publish(folder, prefix)
        if upload is None:
            return False
        self._take(folder, prefix, upload)
        return True

    def push(self, prefix: str) -> None:
        """As ``Root.push``."""
        upload = self._publish(self.local(prefix), prefix)
        if upload is not None:
            _note(self.local(prefix)).write_text(upload)

    def fetch(self, prefix: str) -> Path:
        """As ``Root.fetch``."""
        if not self._bring(prefix):
            shutil.rmtree(self.local(prefix), ignore_errors=True)
        return self.local(prefix)

    def fetch_file(self, key: str) -> Path:
        """As ``Root.fetch_file``."""
        target = self.local(key)
        if not self._bring(key.rpartition("/")[0]):
            try:
                self.download(key, target)
            except FileNotFoundError:
                target.unlink(missing_ok=True)
        return target

    def set_aside(self, prefix: str, folder: Path) -> None:
        """As ``Root.set_aside``."""
        if not self._bring(prefix):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.at(prefix)))
        self._unpublish(prefix)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.local(prefix), folder)

    def move(self, key: str, target: str) -> None:
        """As ``Root.move``: the store copies each object, then it is deleted; pointers come last and go first."""
        names = [f"/{name}" for name in self.sizes(key)] + ([""] if self._is_there(key) else [])
        pointers = [name for name in names if name.endswith(f"/{POINTER}")]
        for name in [*(name for name in names if name not in pointers), *pointers]:
            self._copy(f"{key}{name}", f"{target}{name}")
        for name in pointers:
            super().delete(f"{key}{name}")
        self.delete(key)

    def delete(self, key: str) -> None:
        """As ``Storage.delete``; with this machine's copy."""
        self._unpublish(key)
        super().delete(key)
        local = self.local(key)
        if local.is_dir():
            shutil.rmtree(local, ignore_errors=True)
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                local.unlink()

    def leftovers(self) -> Sequence[str]:
        """As ``Root.leftovers``."""
        names = self.sizes()
        uploads = {match[0] for name in names if (match := _UPLOAD.match(name))}
        places = {name.removesuffix(f"/{POINTER}") for name in names if name.endswith(f"/{POINTER}")}
        return sorted(uploads - {self._upload_of(place) for place in places if uploads})

    def size_bytes(self, prefix: str) -> int:
        """As ``Root.size_bytes``; of a place, what is published there."""
        upload = self._upload_of(prefix)
        return sum(self.sizes(prefix).values()) + (sum(self.sizes(upload).values()) if upload else 0)

    def _publish(self, folder: Path, prefix: str) -> str | None:
        """Upload a folder and make it what a place is; return its upload, None where the place is taken."""
        if self._upload_of(prefix) is not None:
            return None
        above, _, name = prefix.rpartition("/")
        hidden = f".{name}.{secrets.token_hex(8)}"
        upload = f"{above}/{hidden}" if above else hidden
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.send(path, f"{upload}/{path.relative_to(folder).as_posix()}")
        pointer = json.dumps({"schema": SCHEMA, "upload": hidden}).encode() + b"\n"
        if self.put_if_absent(f"{prefix}/{POINTER}", pointer):
            return upload
        super().delete(upload)
        return None

    def _unpublish(self, prefix: str) -> None:
        """Make a place count no more, then remove what it was."""
        upload = self._upload_of(prefix)
        if upload is not None:
            super().delete(f"{prefix}/{POINTER}")
            super().delete(upload)

    def _upload_of(self, prefix: str) -> str | None:
        """Return the prefix that a place's files lie below; None where nothing is published."""
        key = f"{prefix}/{POINTER}"
        try:
            content = json.loads(self.get(key).data)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise Corrupt(f"{self.at(key)}: is not valid JSON ({error})") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content["upload"], str):
            raise Corrupt(f"{self.at(key)}: names no upload of schema {SCHEMA}")
        above = prefix.rpartition("/")[0]
        return f"{above}/{content['upload']}" if above else content["upload"]

    def _bring(self, prefix: str) -> bool:
        """Make this machine's copy of a place what is published there; return whether anything is."""
        upload, target = self._upload_of(prefix), self.local(prefix)
        if upload is None:
            return False
        if not _is_copy(target, upload):
            partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
            place = self.at(upload)
            for name in place.sizes():
                place.download(name, partial / name)
            self._take(partial, prefix, upload)
        return True

    def _take(self, folder: Path, prefix: str, upload: str) -> None:
        """Make a local folder this machine's copy of a place, unless another process did by now."""
        target = self.local(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _note(target).open("a+") as note:
            fcntl.flock(note, fcntl.LOCK_EX)  # so that a copy which another process reads is not replaced by its equal
            if not _is_copy(target, upload):
                note.truncate(0)
                shutil.rmtree(target, ignore_errors=True)
                os.rename(folder, target)
                note.write(upload)
        shutil.rmtree(folder, ignore_errors=True)


def _note(target: Path) -> Path:
    """Return the file that says which upload a local folder is a copy of."""
    return target.with_name(f".{target.name}.upload")


def _is_copy(target: Path, upload: str) -> bool:
    with suppress(FileNotFoundError):
        return _note(target).read_text() == upload and target.is_dir()
    return False
