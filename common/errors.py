"""Error codes of the bus and the exceptions that carry them.

HelexaError
├── ConfigError        a configuration file, key or environment variable is unusable
├── ProtocolError      a frame that cannot be decoded, or another major version
└── RequestError       a request ends with this code, in whatever dialect it came

cortex.api.errors maps every code to an HTTP status and to each dialect's envelope.
"""

import re
from enum import StrEnum


class Code(StrEnum):
    """Why a request or an admin call failed. The value is what users see as `code`."""

    INVALID_JSON = "invalid_json"
    MISSING_FIELD = "missing_field"
    INVALID_VALUE = "invalid_value"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    TEMPLATE_FAILED = "template_failed"
    POISONED_REQUEST = "poisoned_request"
    INVALID_API_KEY = "invalid_api_key"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    PROMPT_TOO_LONG_FOR_MEMORY = "prompt_too_long_for_memory"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    BUSY = "busy"
    NO_CAPACITY = "no_capacity"
    MODEL_LOADING_FAILED = "model_loading_failed"
    MODEL_UNLOADED = "model_unloaded"
    SHUTTING_DOWN = "shutting_down"
    NO_HEALTHY_NEURON = "no_healthy_neuron"
    DEVICE_UNAVAILABLE = "device_unavailable"
    WORKER_DIED = "worker_died"
    NEURON_LOST = "neuron_lost"
    JOB_LOST = "job_lost"
    TOKENS_LOST = "tokens_lost"
    ABORTED = "aborted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL_ERROR = "internal_error"


_OVERFLOW = re.compile(r"maximum context length is (\d+) tokens\. However, your prompt has (?:more than )?(\d+) tokens")


class HelexaError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(HelexaError):
    """A configuration that cannot be used; the text names file, key path and what is allowed."""


class ProtocolError(HelexaError):
    """A frame that is not a message of this protocol; the text names the failing path."""


class RequestError(HelexaError):
    """A request that ends with `code`.

    `param` names the field at fault, `retry_after_s` is a measured wait, `retriable` says that the same job may
    succeed elsewhere or later.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        retriable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retriable = retriable
        self.retry_after_s = retry_after_s


def overflow(tokens: str, context: int, *, param: str | None = None) -> RequestError:
    """Return the error for a prompt of so many tokens (a number, or `more than` one) that does not fit."""
    text = f"This model's maximum context length is {context} tokens. However, your prompt has {tokens} tokens. "
    return RequestError(Code.CONTEXT_LENGTH_EXCEEDED, text + "Shorten it, leaving room for the answer.", param=param)


def read_overflow(message: str) -> tuple[int, int] | None:
    """Return the tokens of the prompt and of the context that a text of `overflow` names, for other wordings of it."""
    match = _OVERFLOW.search(message)
    return None if match is None else (int(match[2]), int(match[1]))
