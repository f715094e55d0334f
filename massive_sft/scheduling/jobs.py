"""Jobs on a running cluster, by Ray's Jobs API: send or run one, look at it again from anywhere, follow it, stop it."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import re
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from massive_sft.core.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.ledger.provenance import redact
from massive_sft.scheduling import end_request

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
AGENT_S = 120.0  # seconds that a cluster which has just started may take until it runs jobs
NO_AGENT = "No available agent"
TIMEOUT_S = 10.0  # seconds for a cluster's first answer
AWAITED = "massive_sft.awaited"  # marks a job whose answer is all that somebody wants of it
POLL_S = 0.5  # seconds between looks at a job that is waited for
UNSUCCESSFUL = frozenset({"FAILED", "STOPPED"})
REQUEST_S = 120.0  # seconds that a job may take that asks another one to end


class JobError(MassiveSFTError):
    """The cluster refused a request, or was lost while it answered. The job itself goes on."""


@dataclass(frozen=True)
class Job:
    """A job as its cluster sees it.

    Attributes:
        id: the submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        sweep: the sweep's name; empty for jobs of other programs.
        entrypoint: its command line.
        message: the cluster's words on the status.
        started, ended: in UTC; None when not yet.
        exit_code: what its command ended with; None where it did not, or was killed with its node.
    """

    id: str
    status: str
    sweep: str
    entrypoint: str
    message: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        return self.has_failed or self.status == "SUCCEEDED"

    @property
    def has_failed(self) -> bool:
        return self.status in UNSUCCESSFUL


@dataclass(frozen=True)
class Sent:
    """A job as it was submitted: its id, and whether it is new or went on already."""

    id: str
    is_new: bool


def resolve_address(address: str | None) -> str:
    """Return the http address of the cluster's dashboard: the one given, else the environment's, else this machine's.

    ``RAY_ADDRESS`` counts when it is an http address; inside a cluster it names something else.

    Raises:
        InvalidInput: it is no http address.
    """
    if address is None:
        named = (os.environ.get(name, "") for name in VARIABLES)
        address = next((text for text in named if text.startswith(("http://", "https://"))), DEFAULT_ADDRESS)
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        rule = "must be the http address of a Ray dashboard, such as " + DEFAULT_ADDRESS
        raise InvalidInput(Problem("--address", rule, redact(address)))
    return address.rstrip("/")


def send_job(address: str, entrypoint: str, package: Path, sweep: str, stem: str) -> Sent:
    """Start a command on the cluster in an unpacked zip file, at once, unless an equal one goes on there.

    Of this machine's environment nothing is sent: Ray shows a job's variables to everybody who sees its dashboard.

    Args:
        address: of the dashboard.
        entrypoint: the command.
        package: the zip file.
        sweep: the sweep's name.
        stem: how the ids of equal jobs begin, before a number; so what was sent twice, for the first answer was lost,
            is started once.
    """
    with _client(address) as client:
        equal = [job for job in _jobs(client) if re.fullmatch(rf"{re.escape(stem)}-\d+", job.id)]
        going = next((job for job in equal if not job.has_ended), None)
        if going is not None:
            return Sent(going.id, False)
        # Above all that are there: of those below some may have been deleted.
        job = f"{stem}-{max((int(one.id.rpartition('-')[2]) for one in equal), default=0) + 1}"
        environment = {"working_dir": str(package)}
        try:
            submit_job(
                client, entrypoint=entrypoint, runtime_env=environment, metadata={"sweep": sweep}, submission_id=job
            )
        except (RuntimeError, OSError):
            if all(one.id != job for one in _jobs(client)):  # else only the answer was lost
                raise
        return Sent(job, True)


def run_job(address: str, entrypoint: str, package: Path, timeout_s: float) -> str:
    """Run a command on the cluster in an unpacked zip file to its end, and return what it printed.

    ``list_jobs`` leaves it out. Raises JobError when it does not end in time; it is stopped then.
    """
    with _client(address) as client:
        return _run(client, entrypoint, {"working_dir": str(package)}, timeout_s)


def list_jobs(address: str | None) -> list[Job]:
    """Return the jobs that were submitted to a cluster, the oldest first."""
    address = resolve_address(address)
    with _client(address) as client:
        return _jobs(client)


def job_status(address: str | None, job: str) -> Job:
    """Return a job. Raises InvalidInput when the cluster does not answer or knows no such job."""
    address = resolve_address(address)
    with _client(address) as client:
        return _find(client, address, job)


def job_logs(address: str | None, job: str, follow: bool = False) -> Iterator[str]:
    """Yield what a job has printed, in pieces; with ``follow`` what it still prints, until it ends.

    Raises:
        InvalidInput: the cluster does not answer or knows no such job.
        JobError: the connection was lost.
    """
    address = resolve_address(address)
    with _client(address) as client:
        _find(client, address, job)
        if not follow:
            yield client.get_job_logs(job)
            return
        pieces = client.tail_job_logs(job)

        async def piece() -> str | None:
            return await anext(pieces, None)

        with asyncio.Runner() as runner:
            while (text := runner.run(piece())) is not None:
                yield text


def stop_job(address: str | None, job: str, now: bool, say: Callable[[str], None]) -> Job:
    """Have a job end where it can go on from, and wait for that; return it as it is then.

    Args:
        address: of the dashboard; None for the default one.
        job: its id.
        now: have the cluster end it as it is set up to, which may be a kill after three seconds.
        say: told what was done.

    Raises:
        InvalidInput: the cluster does not answer or knows no such job.
        JobError: it could not be asked to end first, or the cluster was lost.
    """
    address = resolve_address(address)
    with _client(address) as client:
        found = _find(client, address, job)
        if found.has_ended:
            say("it had ended before")
            return found
        done = end_request.NOT_FOUND if now or found.status == "PENDING" else _request_end(client, found)
        if done == end_request.ASKED:
            say("asked to end after the step or shard in hand; waiting (Ctrl-C leaves, the request stays)")
        else:
            client.stop_job(job)
            say("stopping; the cluster waits for its checkpoint" if done == end_request.WAITS else "stopping at once")
        while not (found := _find(client, address, job)).has_ended:
            time.sleep(POLL_S)
        return found


def cluster_problem(address: str) -> Problem | None:
    """Return why no Ray dashboard can be used at ``address``, or None."""
    place, shown = "--address", redact(address)
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=TIMEOUT_S) as answer:
            is_ray = b"ray_version" in answer.read(10_000)
    except urllib.error.HTTPError as error:
        is_ray = error.code in (401, 403)
        # Ray's client sends its token only when it is told to, and nobody else's business is to tell it.
        if is_ray and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            rule = (
                "asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH where it is not ~/.ray/auth_token"
            )
            return Problem(place, rule, shown)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = redact(str(getattr(error, "reason", error)))
        rule = f"is no cluster that answers ({reason}); start one (cluster/README.md) or give --address"
        return Problem(place, rule, shown)
    return None if is_ray else Problem(place, "answers, but not as a Ray dashboard", shown)


@contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """Give Ray's client, and say in a sentence what it raises."""
    problem = cluster_problem(address)
    if problem:
        raise InvalidInput(problem)
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard_sdk", "job.sdk"):  # they print what they upload, and when a connection ends
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    try:
        with _only_address(address):
            client = JobSubmissionClient(address)
        yield client
    except (RuntimeError, OSError, RayError) as error:  # refused, lost, not let in
        raise JobError(f"{redact(address)}: {redact(str(error)).strip()}") from error


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Keep Ray from letting the environment override the address that its client is given."""
    name = VARIABLES[0]
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def submit_job(client: JobSubmissionClient, pause_s: float = POLL_S, **job: Any) -> str:
    """Submit a job and return its id. What would run it comes up some seconds after a cluster has, and is awaited.

    Arguments and errors are those of the client's own.
    """
    until_s = time.monotonic() + AGENT_S
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > until_s:
                raise
        time.sleep(pause_s)


def _run(client: JobSubmissionClient, entrypoint: str, environment: dict[str, Any], timeout_s: float) -> str:
    """Run a command to its end as a job that nobody sees; return what it printed."""
    job = submit_job(client, entrypoint=entrypoint, runtime_env=environment, metadata={AWAITED: "yes"})
    end = time.monotonic() + timeout_s
    try:
        while not client.get_job_status(job).is_terminal():
            if time.monotonic() > end:
                raise JobError(f"the cluster did not run `{entrypoint}` within {timeout_s:g} s")
            time.sleep(POLL_S)
        details = client.get_job_info(job)
        return f"{details.message or ''}\n{client.get_job_logs(job)}"
    finally:
        client.stop_job(job)


def _request_end(client: JobSubmissionClient, job: Job) -> str:
    """Ask a job's command to end, by a job in the same files; return what was done."""
    python, *rest = job.entrypoint.split(" -m massive_sft ", 1)
    command = f"{python if rest else 'python'} -m massive_sft.scheduling.end_request {shlex.quote(job.id)}"
    printed = _run(client, command, dict(client.get_job_info(job.id).runtime_env or {}), REQUEST_S)
    answer = end_request.find_answer(printed)
    if answer is None:
        last = "; ".join(printed.strip().splitlines()[-3:]) or "it printed nothing"
        raise JobError(
            f"{job.id} could not be asked to end ({redact(last)}); --now has the cluster end it, in any case"
        )
    return answer


def _jobs(client: JobSubmissionClient) -> list[Job]:
    found = [item for item in client.list_jobs() if item.submission_id and AWAITED not in (item.metadata or {})]
    return sorted((_job(item) for item in found), key=lambda job: (job.started is None, job.started or 0))


def _find(client: JobSubmissionClient, address: str, job: str) -> Job:
    jobs = {item.id: item for item in _jobs(client)}
    if job not in jobs:
        raise InvalidInput(Problem("job", f"must be a job of {redact(address)}", job, list(jobs)))
    return jobs[job]


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        sweep=(details.metadata or {}).get("sweep", ""),
        entrypoint=details.entrypoint,
        message=details.message or "",
        started=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
