"""How a request is recognised that has ended the workers that computed it."""

import msgspec
from msgspec import structs

from common.ids import digest
from common.messages import Job


def fingerprint(job: Job) -> str:
    """Return the identity of what a job asks to be computed: the same for each attempt, and for whoever asks again."""
    asked = (job.model, job.input, structs.replace(job.sampling, seed=None), job.constraint)
    return digest(msgspec.msgpack.encode(asked))
