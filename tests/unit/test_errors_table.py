import orjson
import pytest

from common.errors import Code, RequestError
from cortex.api import errors


def test_every_code_has_a_row() -> None:
    assert set(errors.TABLE) == set(Code)


@pytest.mark.parametrize("code", [c for c in Code if errors.TABLE[c].status in (429, 503)])
def test_what_may_succeed_later_says_when(code: Code) -> None:
    assert int(errors.retry_after(RequestError(code, "no")) or 0) >= 1


def test_a_measured_wait_is_rounded_up() -> None:
    assert errors.retry_after(RequestError(Code.NO_CAPACITY, "no", retry_after_s=2.1)) == "3"


def test_waiting_does_not_help_an_invalid_request() -> None:
    assert errors.retry_after(RequestError(Code.INVALID_VALUE, "no", retry_after_s=2.0)) is None


def test_openai_envelope_has_all_four_fields() -> None:
    error = RequestError(Code.INVALID_VALUE, "n: must be 1", param="n")
    assert orjson.loads(errors.envelope(error, "/v1/chat/completions", "r")) == {
        "error": {"message": "n: must be 1", "type": "invalid_request_error", "code": "invalid_value", "param": "n"}
    }


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_paths_of_the_anthropic_api_get_its_envelope(path: str) -> None:
    error = RequestError(Code.NOT_FOUND, "nothing there")
    assert orjson.loads(errors.envelope(error, path, "req_1")) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "nothing there"},
        "request_id": "req_1",
    }


def test_a_path_that_only_begins_alike_is_openais() -> None:
    assert "type" not in orjson.loads(errors.envelope(RequestError(Code.NOT_FOUND, "x"), "/v1/messagesx", "r"))
