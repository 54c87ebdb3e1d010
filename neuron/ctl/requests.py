"""neuronctl requests: which jobs wait and run here, how far each is, and how to end one."""

import argparse

from common import tables
from common.errors import ConfigError
from common.messages import (
    CancelJobs,
    Done,
    JobProgress,
    JobRow,
    Memory,
    MemoryReply,
    Part,
    Status,
    StatusReply,
)
from neuron.ctl.client import NeuronClient
from neuron.ctl.command import LocalCommand, Runnable, print_json


class RequestRow(Part, frozen=True, kw_only=True):
    """A job, and how far its worker has come with it."""

    job: JobRow
    progress: JobProgress | None = None


def ask(client: NeuronClient) -> tuple[StatusReply, MemoryReply, list[RequestRow]]:
    """Return the neuron's state, its workers' view, and the jobs, oldest first."""
    status = client.ask(lambda r: Status(request=r), StatusReply)
    memory = client.ask(lambda r: Memory(request=r), MemoryReply)
    progress = {p.job: p for w in memory.workers for p in w.jobs}
    rows = [RequestRow(job=j, progress=progress.get(j.job)) for j in status.jobs]
    return status, memory, sorted(rows, key=lambda r: -r.job.age_ms)


def phase(row: RequestRow) -> str:
    """Return where a job is: preparing, queued, prefill 40%, decode."""
    progress = row.progress
    if progress is None or row.job.state != "running":
        return row.job.state
    if progress.phase == "prefill" and progress.prompt_n:
        return f"prefill {min(progress.done_n, progress.prompt_n) / progress.prompt_n:.0%}"
    return progress.phase


def cells(row: RequestRow) -> tuple[str, ...]:
    """Return a row of the table."""
    job, progress = row.job, row.progress
    prompt, tokens = ("-", "-") if progress is None else (str(progress.prompt_n), str(progress.tokens))
    age = f"{job.age_ms / 1000:.1f} s"
    return job.job[:12], job.request_id, job.model, phase(row), age, prompt, tokens, job.device or "-", job.principal


COLUMNS = ("JOB", "REQUEST", "MODEL", "PHASE", "AGE", "PROMPT", "TOKENS", "DEVICE", "WHO")
NUMBERS = ("AGE", "PROMPT", "TOKENS")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("ls", "cancel"), default="ls",
                        help="list them (default); end one, whose client gets an error")  # fmt: skip
    parser.add_argument("id", nargs="?", metavar="ID", help="cancel: a request's id, or the beginning of a job's")


def _run(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    if arguments.action == "cancel":
        if not arguments.id:
            raise ConfigError("requests cancel: which one? `neuronctl requests` shows them")
        reply = client.ask(lambda r: CancelJobs(request=r, target=arguments.id), Done)
        print_json(reply) if as_json else print(reply.text)
        return
    rows = ask(client)[2]
    if as_json:
        print_json(rows)
    elif rows:
        tables.show(COLUMNS, [cells(row) for row in rows], right=NUMBERS)
    else:
        print("no requests")


REQUESTS: dict[str, Runnable] = {
    "requests": LocalCommand("requests that wait or run here, with phase, age and tokens; cancel ID", _run, _arguments)
}
