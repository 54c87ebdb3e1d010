"""The one table from error codes to HTTP: status, and the type that each dialect's envelope gives."""

import math
from dataclasses import dataclass

import orjson

from common.errors import Code, RequestError, read_overflow


@dataclass(frozen=True, slots=True)
class Row:
    """How one code looks over HTTP."""

    status: int
    openai: str
    anthropic: str
    retry_after_s: int | None = None
    """Where the error itself brings no measured wait."""


_INVALID = Row(400, "invalid_request_error", "invalid_request_error")
_TOO_LARGE = Row(413, "invalid_request_error", "request_too_large")
_OVERLOADED = Row(503, "server_error", "overloaded_error", retry_after_s=1)
_INTERNAL = Row(500, "server_error", "api_error")

TABLE: dict[Code, Row] = {
    Code.INVALID_JSON: _INVALID,
    Code.MISSING_FIELD: _INVALID,
    Code.INVALID_VALUE: _INVALID,
    Code.UNSUPPORTED_PARAMETER: _INVALID,
    Code.CONTEXT_LENGTH_EXCEEDED: _INVALID,
    Code.TEMPLATE_FAILED: _INVALID,
    Code.POISONED_REQUEST: _INVALID,
    Code.INVALID_API_KEY: Row(401, "authentication_error", "authentication_error"),
    Code.PERMISSION_DENIED: Row(403, "permission_error", "permission_error"),
    Code.NOT_FOUND: Row(404, "invalid_request_error", "not_found_error"),
    Code.METHOD_NOT_ALLOWED: Row(405, "invalid_request_error", "invalid_request_error"),
    Code.MODEL_NOT_FOUND: Row(404, "invalid_request_error", "not_found_error"),
    Code.REQUEST_TOO_LARGE: _TOO_LARGE,
    Code.PROMPT_TOO_LONG_FOR_MEMORY: _TOO_LARGE,
    Code.RATE_LIMIT_EXCEEDED: Row(429, "rate_limit_error", "rate_limit_error", retry_after_s=1),
    Code.BUSY: _OVERLOADED,
    Code.NO_CAPACITY: _OVERLOADED,
    Code.MODEL_LOADING_FAILED: Row(503, "server_error", "api_error", retry_after_s=5),
    Code.MODEL_UNLOADED: _OVERLOADED,
    Code.SHUTTING_DOWN: _OVERLOADED,
    Code.NO_HEALTHY_NEURON: _OVERLOADED,
    Code.DEVICE_UNAVAILABLE: _OVERLOADED,
    Code.WORKER_DIED: _OVERLOADED,
    Code.NEURON_LOST: _OVERLOADED,
    Code.JOB_LOST: _OVERLOADED,
    Code.TOKENS_LOST: _OVERLOADED,
    Code.ABORTED: _INTERNAL,
    Code.DEADLINE_EXCEEDED: Row(504, "server_error", "api_error"),
    Code.INTERNAL_ERROR: _INTERNAL,
}


def internal_error() -> RequestError:
    """Return what a client is told of a defect: nothing but the id to look for in the log."""
    return RequestError(Code.INTERNAL_ERROR, "an internal error; the log has it under this request's x-request-id")


def status(error: RequestError) -> int:
    """Return the HTTP status."""
    return TABLE[error.code].status


def retry_after(error: RequestError) -> str | None:
    """Return the value of Retry-After in whole seconds, None where waiting does not help."""
    row = TABLE[error.code]
    if row.retry_after_s is None:
        return None
    return str(row.retry_after_s if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s)))


def envelope(error: RequestError, path: str, request_id: str) -> bytes:
    """Return the error in the envelope of the dialect that `path` belongs to."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return to_anthropic(error, request_id)
    return to_openai(error)


def to_openai(error: RequestError) -> bytes:
    """Return OpenAI's envelope."""
    row = TABLE[error.code]
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": row.openai,
                "code": error.code.value,
                "param": error.param,
            }
        }
    )


def to_anthropic(error: RequestError, request_id: str) -> bytes:
    """Return Anthropic's envelope."""
    row = TABLE[error.code]
    message = error.message
    if error.code is Code.CONTEXT_LENGTH_EXCEEDED and (sizes := read_overflow(message)) is not None:
        message = f"prompt is too long: {sizes[0]} tokens > {sizes[1]} maximum"  # clients compact at these words
    return orjson.dumps(
        {
            "type": "error",
            "error": {"type": row.anthropic, "message": message},
            "request_id": request_id,
        }
    )
