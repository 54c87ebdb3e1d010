"""The ways in which a job ends badly, as messages. Pure."""

from common.errors import Code
from common.messages import FailedItem, Job, JobKey
from neuron.supervisor.inquest import Finding


def failure(
    job: Job,
    code: Code,
    message: str,
    *,
    retriable: bool = False,
    param: str | None = None,
    retry_after_ms: int | None = None,
    found: Finding | None = None,
) -> FailedItem:
    """Return the bad end of a job; what is held against it already stays."""
    return FailedItem(
        job=job.id,
        attempt=job.attempt,
        code=code,
        message=message,
        param=param,
        retriable=retriable,
        retry_after_ms=retry_after_ms,
        strikes=job.strikes if found is None else found.strikes,
        shared_deaths=job.shared_deaths if found is None else found.shared_deaths,
    )


def poisoned(job: Job) -> FailedItem:
    """Return the end of a job that ends workers."""
    text = "this request has ended the workers that computed it, and is refused for some minutes"
    return failure(job, Code.POISONED_REQUEST, text)


def lost_job(key: JobKey) -> FailedItem:
    """Return the end of a job of which a gateway alone knows."""
    return FailedItem(
        job=key.job,
        attempt=key.attempt,
        code=Code.JOB_LOST,
        message="the neuron does not have this job",
        retriable=True,
    )
