"""Keys over HTTP: what the application refuses, shows, and passes on."""

from typing import Any

import pytest

from common.errors import Code
from cortex.access.keys import ApiKey, KeyRing, digest, spell
from cortex.dialects.canonical import ANONYMOUS_PRIORITY
from cortex.settings import BrowserSettings
from tests.component.test_api_endpoints import CHAT, Side, error_of, falcons_own_loop  # noqa: F401
from tests.support.fake_fleet import MODEL

TEXT = spell("a" * 8, "1" * 48)


def entry(text: str = TEXT, **fields: Any) -> ApiKey:
    return ApiKey(id=text[10:18], hash=digest(text), row=0, created_at=0, **fields)


def test_a_key_is_taken_from_both_headers_and_named_by_its_id() -> None:
    side = Side(keys=[entry()])
    assert side.post("/v1/chat/completions", CHAT, authorization=f"Bearer {TEXT}").status_code == 200
    assert side.post("/v1/chat/completions", CHAT, x_api_key=TEXT).status_code == 200
    assert {(j.principal, j.priority) for j in side.fleet.jobs} == {("key:aaaaaaaa", 100)}


def test_the_refusal_has_the_envelope_of_the_dialect() -> None:
    side = Side(keys=[entry()])
    assert error_of(side.post("/v1/chat/completions", CHAT, x_api_key="none"))["code"] == "invalid_api_key"
    result = side.post("/v1/messages", b"{}")
    assert (result.status_code, result.json["error"]["type"]) == (401, "authentication_error")
    assert side.get("/v1/models").status_code == 401
    assert side.get("/livez").status_code == 200
    assert not side.fleet.jobs


def test_whoever_has_no_key_waits_behind_those_who_have() -> None:
    side = Side(keys=[entry()], anonymous=True)
    assert side.post("/v1/chat/completions", CHAT, x_api_key="none").status_code == 200
    assert [(j.principal, j.priority) for j in side.fleet.jobs] == [("10.1.2.3", ANONYMOUS_PRIORITY)]


def test_a_key_sees_and_uses_only_its_models() -> None:
    side = Side(keys=[entry(models=["other"])])
    result = side.post("/v1/chat/completions", CHAT, x_api_key=TEXT)
    assert (result.status_code, error_of(result)["param"]) == (403, "model")
    counted = side.post("/v1/messages/count_tokens", {**CHAT, "max_tokens": 1}, x_api_key=TEXT)
    assert counted.status_code == 403
    assert side.get("/v1/models", x_api_key=TEXT).json["data"] == []
    assert side.get(f"/v1/models/{MODEL}", x_api_key=TEXT).status_code == 404
    side.ring = KeyRing([entry(models=[MODEL])])
    assert side.post("/v1/chat/completions", {**CHAT, "model": "default"}, x_api_key=TEXT).status_code == 200
    assert len(side.get("/v1/models", x_api_key=TEXT).json["data"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_itself_is_in_no_log_and_in_no_error(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    side = Side(keys=[entry()])
    for text in (TEXT, TEXT[:-1] + "2"):
        result = side.post("/v1/chat/completions", {**CHAT, "stream": stream, "model": "nope"}, x_api_key=text)
        assert text not in result.text
    logged = " ".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
    assert "key:aaaaaaaa" in logged
    assert TEXT[19:] not in logged


def test_requests_of_a_revoked_key_end_and_those_of_others_go_on() -> None:
    side = Side(keys=[entry()], anonymous=True)

    class Running:
        """What the front asks of an exchange."""

        def __init__(self, name: str) -> None:
            headers = [(b"x-api-key", name.encode())]
            self.identity = side.access.identify("/v1/models", headers, "10.0.0.1")
            self.call = side.fleet.submit([])
            self.failed: list[Code] = []
            self.call.fail = lambda error: self.failed.append(error.code)  # type: ignore[method-assign]

    mine, other = Running(TEXT), Running("none")
    side.app.active = {mine, other}  # type: ignore[arg-type]
    side.app.end_revoked()
    assert mine.failed == other.failed == []
    side.ring = KeyRing([entry(revoked_at=1)])
    side.app.end_revoked()
    assert mine.failed == [Code.INVALID_API_KEY]
    assert other.failed == []


def test_a_page_of_another_site_needs_a_key() -> None:
    side = Side(keys=[entry()], anonymous=True)
    evil = {"origin": "http://evil.example"}
    refused = side.post("/v1/chat/completions", CHAT, **evil)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "permission_denied")
    assert side.get("/v1/models", **evil).status_code == 403
    answer = side.post("/v1/chat/completions", CHAT, x_api_key=TEXT, **evil)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers  # so the page does not see it


def test_pages_of_a_configured_origin_see_answers_and_errors() -> None:
    side = Side(keys=[entry()], browsers=BrowserSettings(origins=["https://chat.example"]))
    page = {"origin": "https://chat.example"}
    asked = side._client.simulate_options(
        "/v1/chat/completions", headers={**page, "access-control-request-method": "POST"}
    )
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "https://chat.example")
    for key, status in ((TEXT, 200), ("none", 401)):
        answer = side.post("/v1/chat/completions", CHAT, x_api_key=key, **page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "https://chat.example")
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_a_key_counts_in_a_header_only() -> None:
    side = Side(keys=[entry(role="admin")])
    assert side.get("/fleet/status", x_api_key=TEXT).status_code == 200
    for elsewhere in ({"cookie": f"x-api-key={TEXT}; authorization=Bearer {TEXT}"}, {"authorization": f"Basic {TEXT}"}):
        assert side.get("/fleet/status", **elsewhere).status_code == 401
    assert side.get(f"/fleet/status?key={TEXT}&api_key={TEXT}").status_code == 401


def test_what_is_compressed_is_refused_before_it_is_read() -> None:
    result = Side().post("/v1/chat/completions", b"\x1f\x8b", content_encoding="gzip")
    assert (result.status_code, error_of(result)["param"]) == (400, "content-encoding")
