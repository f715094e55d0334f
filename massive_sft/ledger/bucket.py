"""A bucket of an object store that speaks S3, as a ``Storage``: ``put_if_absent`` is ``If-None-Match: *`` there.

The client asks again when no answer came. If the first request had succeeded, the second is refused: so an answer is
not believed, the object is. Each writing has a token of its own, kept as the object's metadata, by which a writer knows
its object again. Endpoint, region and keys are what boto3 finds (``AWS_*`` and its files) and are written nowhere.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

from massive_sft.core.errors import Unsupported
from massive_sft.ledger.manifest import NAME as MANIFEST
from massive_sft.ledger.provenance import redact
from massive_sft.ledger.storage import Blob, Listed

log = logging.getLogger(__name__)

ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[\w=+-][\w.=+-]*)*)/?")
"""``s3://bucket/prefix``; no user, no port, and nothing that an object's name would have to escape."""
TRIES = 5  # of a writing that another one is going on beside
AT_ONCE = 1000  # objects that one request may delete
FEW = 4  # prefixes that are listed one by one, even if most objects lie below others
_WRITER = "writer"
_MISSING = frozenset({"404", "NoSuchKey"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"})
_CODES = {403: errno.EACCES, 401: errno.EACCES, 507: errno.ENOSPC}


class _Conflict(OSError):
    """A writing that was refused because of what is there already."""


@dataclass(frozen=True)
class Bucket:
    """Objects of a bucket below a prefix, as a ``Storage``.

    Attributes:
        bucket: its name.
        prefix: without a slash at its ends; may be empty.
    """

    changes_in_place: ClassVar[bool] = False

    bucket: str
    prefix: str = ""

    @classmethod
    def of(cls, address: str) -> Self:
        """Return the place that ``s3://bucket/prefix`` names. Raises ValueError for what is no such address."""
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise ValueError(f"is no address of a bucket (s3://bucket/prefix): {redact(address)!r}")
        return cls(match[1], match[2].strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def at(self, prefix: str) -> Bucket:
        """As ``Storage.at``."""
        return Bucket(self.bucket, self._key(prefix))

    def get(self, key: str) -> Blob:
        """As ``Storage.get``."""
        with self._asking(key) as client:
            answer = client.get_object(Bucket=self.bucket, Key=self._key(key))
            return Blob(answer["Body"].read(), _version(answer), answer["LastModified"].timestamp())

    def put(self, key: str, data: bytes) -> None:
        """As ``Storage.put``."""
        self._put(key, data, secrets.token_hex(8))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """As ``Storage.put_if_absent``."""
        writer = secrets.token_hex(8)
        for _ in range(TRIES):
            try:
                self._put(key, data, writer, IfNoneMatch="*")
            except OSError as error:
                if self._is_of(key, writer):
                    return True
                if not isinstance(error, _Conflict):
                    raise
                if self._is_there(key):
                    return False  # else another writing, which was going on, came to nothing
            else:
                return True
        raise self._told(key, errno.EIO, "other processes write this object all the time")

    def overwrite(self, key: str, data: bytes) -> None:
        """As ``Storage.overwrite``."""
        writer = secrets.token_hex(8)
        seen = self._head(key)
        try:
            self._put(key, data, writer, IfMatch=seen["ETag"])
        except OSError:
            if not self._is_of(key, writer):
                raise

    def list(self, prefix: str = "") -> list[Listed]:
        """As ``Storage.list``; without names that begin with a dot."""
        below = self._below(prefix)
        with self._asking(prefix) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below, Delimiter="/")
            found: dict[str, str] = {}
            for page in pages:
                found |= {item["Prefix"][len(below) : -1]: "" for item in page.get("CommonPrefixes", ())}
                found |= {item["Key"][len(below) :]: _mark(item) for item in page.get("Contents", ())}
        return _told_of(self, prefix, found)

    def list_each(self, prefix: str, names: Collection[str] | None = None) -> Iterator[tuple[str, Sequence[Listed]]]:
        """As ``Storage.list_each``: of many by one listing, a request for a thousand objects."""
        if names is not None and len(names) <= FEW:
            yield from ((name, listed) for name in sorted(names) if (listed := self.list(f"{prefix}/{name}")))
            return
        below = self._below(prefix)
        with self._asking(prefix) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below)
            items = [item for page in pages for item in page.get("Contents", ())]
        found: dict[str, dict[str, str]] = {}
        for item in items:
            name, slash, rest = item["Key"][len(below) :].partition("/")
            if slash and (names is None or name in names):
                first, deeper, _ = rest.partition("/")
                found.setdefault(name, {})[first] = "" if deeper else _mark(item)
        for name in sorted(found):
            if name[0] != "." and (listed := _told_of(self, f"{prefix}/{name}", found[name])):
                yield name, listed

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the bytes of each object below a prefix, at any depth, by its name below it."""
        below = self._below(prefix)
        with self._asking(prefix) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below)
            return {item["Key"][len(below) :]: int(item["Size"]) for page in pages for item in page.get("Contents", ())}

    def delete(self, key: str) -> None:
        """As ``Storage.delete``; parts of uploads that were killed go too."""
        names = [f"{key}/{name}" if key else name for name in self.sizes(key)] + ([key] if key else [])
        with self._asking(key) as client:
            for start in range(0, len(names), AT_ONCE):
                listed = [{"Key": self._key(name)} for name in names[start : start + AT_ONCE]]
                answer = client.delete_objects(Bucket=self.bucket, Delete={"Objects": listed, "Quiet": True})
                for refused in answer.get("Errors", ()):
                    raise self._told(key, errno.EACCES, f"is not deleted: {refused.get('Message')}")
        self._abort_uploads(self._below(key))

    def upload(self, folder: Path, prefix: str) -> bool:
        """As ``Storage.upload``: the manifest is written last, where none is yet."""
        data, place = (folder / MANIFEST).read_bytes(), self.at(prefix)
        if MANIFEST in place.sizes():
            return False
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path != folder / MANIFEST:
                place.send(path, path.relative_to(folder).as_posix())
        if not place.put_if_absent(MANIFEST, data):
            return False
        shutil.rmtree(folder)
        return True

    def download(self, key: str, path: Path) -> None:
        """As ``Storage.download``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._asking(key) as client:
            client.download_file(self.bucket, self._key(key), str(path))

    def _copy(self, key: str, target: str) -> None:
        """Have the store copy an object of any size."""
        with self._asking(key) as client:
            client.copy({"Bucket": self.bucket, "Key": self._key(key)}, self.bucket, self._key(target))

    def send(self, path: Path, key: str) -> None:
        """Write a local file of any size as an object, in parts where it is large."""
        writer = secrets.token_hex(8)
        try:
            with self._asking(key) as client:
                client.upload_file(str(path), self.bucket, self._key(key), ExtraArgs={"Metadata": {_WRITER: writer}})
        except OSError:
            if not self._is_of(key, writer):
                raise

    def _put(self, key: str, data: bytes, writer: str, **conditions: str) -> None:
        with self._asking(key) as client:
            client.put_object(
                Bucket=self.bucket, Key=self._key(key), Body=data, Metadata={_WRITER: writer}, **conditions
            )

    def _head(self, key: str) -> dict[str, Any]:
        with self._asking(key) as client:
            answer: dict[str, Any] = client.head_object(Bucket=self.bucket, Key=self._key(key))
            return answer

    def _version_at(self, key: str) -> str:
        return _version(self._head(key))

    def _is_of(self, key: str, writer: str) -> bool:
        """Return whether an object is certainly that of a writing."""
        try:
            return _writer(self._head(key)) == writer
        except OSError:
            return False

    def _is_there(self, key: str) -> bool:
        try:
            self._head(key)
        except FileNotFoundError:
            return False
        return True

    def _abort_uploads(self, below: str) -> None:
        """Give up what was uploaded in parts and not finished; a store that knows no such thing has none."""
        try:
            with self._asking(below) as client:
                pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=below)
                for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except OSError as error:
            log.info("unfinished uploads below %s are left: %s", self, error)

    def _key(self, key: str) -> str:
        return "/".join(part for part in (self.prefix, key) if part)

    def _below(self, prefix: str) -> str:
        key = self._key(prefix)
        return f"{key}/" if key else ""

    @contextmanager
    def _asking(self, key: str) -> Iterator[Any]:
        """Give the client; what it raises becomes an OSError that says where and why."""
        client = _client(os.getpid(), frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield client
        except (BotoCoreError, Boto3Error, ClientError) as error:
            cause = next((one for one in _chain(error) if isinstance(one, ClientError)), None)
            if cause is None:
                raise self._told(key, errno.EIO, str(error)) from error
            told = self._answered(key, cause.response)
            if cause.operation_name == "HeadObject" and not isinstance(told, FileNotFoundError):
                with self._asking(key):  # for its refusals say nothing
                    client.get_object(Bucket=self.bucket, Key=self._key(key), Range="bytes=0-0")
            raise told from error

    def _answered(self, key: str, response: Any) -> OSError:
        """Return the error that an answer of the store means."""
        code, status = str(response["Error"].get("Code")), response["ResponseMetadata"].get("HTTPStatusCode")
        if code in _MISSING:
            return self._told(key, errno.ENOENT, "is not there")
        if status in (409, 412):
            return _Conflict(errno.EEXIST, response["Error"].get("Message"), str(self.at(key)))
        if code in _EXPIRED:
            remedy = "renew the credentials, then run the same command to go on"
            return self._told(key, errno.EACCES, f"{response['Error'].get('Message')} ({code}); {remedy}")
        return self._told(key, _CODES.get(status, errno.EIO), f"{response['Error'].get('Message')} ({code})")

    def _told(self, key: str, number: int, reason: str) -> OSError:
        return OSError(number, redact(reason), str(self.at(key)))


def _told_of(place: Bucket, prefix: str, found: Mapping[str, str]) -> list[Listed]:
    """Return names below a prefix, with their marks, as they are listed."""
    return [
        Listed(name, partial(place._version_at, f"{prefix}/{name}" if prefix else name), mark)
        for name, mark in found.items()
        if name and name[0] != "."
    ]


def _version(answer: Any) -> str:
    """Return what differs with each writing: the ETag, which equal contents share, and the writer's token."""
    return f"{_mark(answer)}-{_writer(answer) or ''}"


def _mark(answer: Any) -> str:
    """Return an object's ETag without what would end a mark (``Listed``): that of several parts has a dash."""
    return str(answer["ETag"]).strip('"').replace("-", ".")


def _writer(answer: Any) -> str | None:
    """Return the token of the writing that an object is of; some servers capitalise its name."""
    return next((value for name, value in answer["Metadata"].items() if name.lower() == _WRITER), None)


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@lru_cache(maxsize=1)
def _client(process: int, settings: frozenset[tuple[str, str]]) -> Any:
    """Return the client of this process, which its threads share; a fork, or other settings, have their own."""
    try:
        import boto3
    except ImportError as error:
        raise Unsupported("s3://: needs boto3, which is not installed: pip install 'massive-sft[s3]'") from error
    return boto3.session.Session().client("s3")
