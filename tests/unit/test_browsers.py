"""Pages: of other sites, of names that were made to point here, and of the gateway's own address."""

import pytest

from common.errors import Code, RequestError
from cortex.api.browsers import Browsers

NAME = "gate"


def headers(**given: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]


def is_let_in(browsers: Browsers, **given: str) -> bool:
    try:
        browsers.check_host(headers(**given))
        browsers.check_page(headers(**given))
    except RequestError:
        return False
    return True


def test_a_refusal_says_what_to_configure() -> None:
    with pytest.raises(RequestError, match=r"browsers\.hosts") as caught:
        Browsers(None, []).check_page(headers(host="a.example", origin="http://a.example"))
    assert caught.value.code is Code.PERMISSION_DENIED
    with pytest.raises(RequestError, match=r"browsers\.origins"):
        Browsers(None, []).check_page(headers(host="10.0.0.1", origin="http://a.example"))


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("evil.example:31313", None, True),  # no page
        ("192.168.1.5:31313", "http://evil.example", False),
        ("192.168.1.5:31313", "null", False),
        ("192.168.1.5:31313", "http://192.168.1.5:31313", True),
        ("192.168.1.5:31313", "http://192.168.1.5:8080", False),
        ("[fe80::1]:31313", "http://[fe80::1]:31313", True),
        ("localhost:31313", "http://localhost:31313", True),
        ("gate:31313", "http://gate:31313", True),
        ("GATE", "https://gate", True),
        ("evil.example:31313", "http://evil.example:31313", False),  # a name that was made to point here
        ("127.0.0.1.evil.example", "http://127.0.0.1.evil.example", False),
        ("localhost.evil.example", "http://localhost.evil.example", False),
    ],
)
def test_without_a_key_only_pages_of_our_own_address_are_let_in(host: str, origin: str | None, expected: bool) -> None:
    given = {"host": host} | ({} if origin is None else {"origin": origin})
    assert is_let_in(Browsers(None, [], [NAME]), **given) is expected


def test_names_that_are_configured_are_the_only_ones() -> None:
    browsers = Browsers(["Models.Example.org"], [], [NAME])
    assert is_let_in(browsers, host="models.example.org:31313")
    assert is_let_in(browsers, host="models.example.org", origin="http://models.example.org")
    assert is_let_in(browsers, host="10.0.0.1:31313")
    assert is_let_in(browsers, host="gate")
    assert not is_let_in(browsers, host="evil.example")
    assert not is_let_in(browsers)


def test_nobody_elses_pages_are_told_anything_unless_configured() -> None:
    asked = headers(host="gate", origin="https://chat.example", access_control_request_method="POST")
    browsers = Browsers(None, [], [NAME])
    assert browsers.answer_headers(asked) == []
    assert browsers.preflight("OPTIONS", asked) is None


def test_pages_of_configured_origins_may_ask_and_read() -> None:
    browsers = Browsers(None, ["https://chat.example/"], [NAME])
    assert is_let_in(browsers, host="gate", origin="https://chat.example")
    assert not is_let_in(browsers, host="gate", origin="https://chat.example.evil")
    asked = headers(
        origin="https://chat.example",
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type",
    )
    answer = dict(browsers.preflight("OPTIONS", asked) or [])
    assert answer[b"access-control-allow-origin"] == b"https://chat.example"
    assert answer[b"access-control-allow-headers"] == b"authorization,content-type"
    assert b"access-control-allow-credentials" not in answer  # nothing here is by cookie
    assert browsers.preflight("POST", asked) is None
    others = headers(origin="https://evil.example", access_control_request_method="POST")
    assert browsers.preflight("OPTIONS", others) is None
    assert browsers.answer_headers(others) == [(b"vary", b"Origin")]
    assert dict(Browsers(None, ["*"]).answer_headers(others))[b"access-control-allow-origin"] == b"*"
