"""Random identifiers of jobs, requests and process incarnations."""

import hashlib
import os


def new_job_id() -> str:
    """Return a random 128-bit job id as 32 hexadecimal digits."""
    return os.urandom(16).hex()


def new_request_id() -> str:
    """Return a request id for logs and the x-request-id header."""
    return "req_" + os.urandom(12).hex()


def new_incarnation() -> str:
    """Return the id of one life of one process, as 32 hexadecimal digits.

    A restarted process has another one, so a message that names an older incarnation is recognised as late. It doubles
    as the ZeroMQ routing id: with ROUTER_HANDOVER a peer can take over another's id, so it must not be guessable.
    """
    return os.urandom(16).hex()


def digest(data: bytes) -> str:
    """Return a short fingerprint of `data`: 16 hexadecimal digits, not for secrets."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
