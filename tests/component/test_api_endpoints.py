"""The HTTP side alone, with a fleet that plays scripts."""

import asyncio
from collections.abc import Sequence
from typing import Any

import falcon.testing
import orjson
import pytest

from common.catalogue import Alias
from common.engine_options import SamplingDefaults
from common.errors import Code, RequestError, overflow
from common.messages import Chat, RenderedItem
from cortex.access.access import Access
from cortex.access.keys import ApiKey, KeyRing
from cortex.api.front import Front
from cortex.api.status import Lifecycle
from cortex.app import create_app
from cortex.fleet.contract import Health
from cortex.settings import BrowserSettings, CortexSettings, GatewaySettings
from tests.support.fake_fleet import MODEL, FakeFleet, answer, begun, done

ADMIN_KEY = "an-admin-key-of-some-length"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


class Side:
    """An application, its fake fleet, and a client."""

    def __init__(
        self,
        *,
        admin: bool = True,
        keys: Sequence[ApiKey] = (),
        anonymous: bool | None = None,
        browsers: BrowserSettings | None = None,
        **gateway: Any,
    ) -> None:
        self.fleet = FakeFleet()
        self.lifecycle = Lifecycle()
        settings = CortexSettings(gateway=GatewaySettings(**gateway), browsers=browsers or BrowserSettings())
        self.ring = KeyRing(keys)
        admins = frozenset({ADMIN_KEY} if admin else ())
        self.access = Access(admins, anonymous=anonymous, ring=lambda: self.ring)
        self.app: Front = create_app(settings, self.fleet, self.access, self.lifecycle)
        self._client = falcon.testing.TestClient(self.app)

    def get(self, path: str, **headers: str) -> falcon.testing.Result:
        """GET."""
        return self._client.simulate_get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, path: str, body: Any, **headers: str) -> falcon.testing.Result:
        """POST JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        return self._client.simulate_post(path, body=data, headers=names, remote_addr="10.1.2.3")

    def chat(self, **fields: Any) -> falcon.testing.Result:
        """POST a chat request."""
        return self.post("/v1/chat/completions", {**CHAT, **fields})


@pytest.fixture(scope="module", autouse=True)
def falcons_own_loop() -> None:
    """Falcon's test client keeps one event loop for the whole process."""
    falcon.async_to_sync(asyncio.sleep, 0)


@pytest.fixture
def side() -> Side:
    return Side()


def error_of(result: falcon.testing.Result) -> dict[str, Any]:
    """Return the error of OpenAI's envelope."""
    error: dict[str, Any] = result.json["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return error


def test_a_reply_that_is_not_streamed_is_the_whole_body(side: Side) -> None:
    result = side.chat()
    assert result.status_code == 200
    assert result.headers["content-type"] == "application/json"
    assert result.json["choices"][0]["message"]["content"] == "Hello world"
    assert all(call.is_closed for call in side.fleet.calls)


def test_a_stream_says_that_it_must_not_be_buffered(side: Side) -> None:
    result = side.chat(stream=True)
    assert result.headers["content-type"].startswith("text/event-stream")
    assert (result.headers["x-accel-buffering"], result.headers["cache-control"]) == ("no", "no-cache")
    assert result.text.endswith("data: [DONE]\n\n")


def test_an_alias_is_resolved_for_the_job_and_in_the_reply(side: Side) -> None:
    assert side.chat(model="default").json["model"] == MODEL
    assert side.fleet.jobs[0].model == MODEL


def test_completions_are_answered_in_their_own_shape(side: Side) -> None:
    result = side.post("/v1/completions", {"model": MODEL, "prompt": ["a", "b"]})
    assert [c["text"] for c in result.json["choices"]] == ["Hello world"] * 2
    assert result.json["object"] == "text_completion"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_start_is_a_real_status_also_for_a_stream(side: Side, stream: bool) -> None:
    text = "This model's maximum context length is 10 tokens. However, your prompt has 20 tokens."
    side.fleet.script = lambda job: [RequestError(Code.CONTEXT_LENGTH_EXCEEDED, text, param="messages")]
    result = side.chat(stream=stream)
    assert result.status_code == 400
    error = error_of(result)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "maximum context length is 10 tokens" in error["message"]


def test_a_streamed_response_tells_of_an_overflow_after_its_200_and_of_nothing_else(side: Side) -> None:
    body = {"model": MODEL, "input": "hi"}
    side.fleet.script = lambda job: [overflow("20", 10)]
    assert side.post("/v1/responses", body).status_code == 400
    result = side.post("/v1/responses", {**body, "stream": True})
    assert result.status_code == 200
    kinds = [line.removeprefix("event: ") for line in result.text.splitlines() if line.startswith("event: ")]
    assert kinds == ["response.created", "response.in_progress", "response.failed"]
    assert '"code":"context_length_exceeded"' in result.text
    side.fleet.script = lambda job: [RequestError(Code.NO_CAPACITY, "full")]
    result = side.post("/v1/responses", {**body, "stream": True})
    assert (result.status_code, error_of(result)["code"]) == (503, "no_capacity")


def test_a_failure_in_mid_stream_is_an_error_event_without_done(side: Side) -> None:
    side.fleet.script = lambda job: [begun(), "Hel", RequestError(Code.WORKER_DIED, "the worker died")]
    result = side.chat(stream=True)
    assert result.status_code == 200
    last = result.text.rstrip().split("\n\n")[-1]
    assert orjson.loads(last.removeprefix("data: "))["error"]["code"] == "worker_died"
    assert "[DONE]" not in result.text


def test_a_late_failure_of_a_whole_reply_is_a_real_status(side: Side) -> None:
    side.fleet.script = lambda job: [begun(), "Hel", RequestError(Code.WORKER_DIED, "x", retry_after_s=7.0)]
    result = side.chat()
    assert (result.status_code, result.headers["retry-after"]) == (503, "7")


def test_a_defect_in_mid_stream_tells_nothing_and_never_looks_like_success(side: Side) -> None:
    side.fleet.script = lambda job: [begun(), object()]  # type: ignore[list-item]
    result = side.chat(stream=True)
    assert orjson.loads(result.text.rstrip().split("\n\n")[-1][6:])["error"]["code"] == "internal_error"
    assert "[DONE]" not in result.text
    assert "Traceback" not in result.text


def test_a_defect_is_500_without_its_text(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(_: object) -> None:
        raise ZeroDivisionError("secret path")

    monkeypatch.setattr(side.fleet, "resolve", explode)
    result = side.chat()
    assert (result.status_code, error_of(result)["code"]) == (500, "internal_error")
    assert "secret" not in result.text


def test_silence_is_filled_with_comments_and_the_first_is_the_status() -> None:
    side = Side(first_byte_s=0.05, ping_s=0.05)
    side.fleet.script = lambda job: [0.12, begun(), 0.12, "Hi", done(1)]
    result = side.chat(stream=True)
    assert result.status_code == 200
    assert result.text.startswith(": ping\n\n")
    before, after = result.text.split('"role"')
    assert before.count(": ping") >= 2
    assert after.count(": ping") >= 2
    assert result.text.endswith("data: [DONE]\n\n")


def test_a_failure_after_the_first_comment_is_an_error_event() -> None:
    side = Side(first_byte_s=0.02)
    side.fleet.script = lambda job: [0.1, RequestError(Code.NO_CAPACITY, "full")]
    result = side.chat(stream=True)
    assert result.status_code == 200
    assert '"code":"no_capacity"' in result.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[3600.0], [begun(), 3600.0], [begun(), "Hel", 3600.0]])
def test_a_client_that_goes_away_closes_its_call(stream: bool, script: list[Any]) -> None:
    async def main() -> None:
        side = Side(first_byte_s=0.01)
        side.fleet.script = lambda job: script
        scope = falcon.testing.create_scope(path="/v1/chat/completions", method="POST")
        body = orjson.dumps({**CHAT, "stream": stream})

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            pass

        task = asyncio.create_task(side.app(scope, receive, send))
        await asyncio.sleep(0.05)
        open_calls = [c for c in side.fleet.calls if not c.is_closed]
        assert len(open_calls) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert open_calls[0].is_closed
        assert not side.app.active

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_malformed_json_is_400_in_the_envelope(side: Side, path: str) -> None:
    result = side.post(path, b'{"model":')
    assert (result.status_code, error_of(result)["code"]) == (400, "invalid_json")


def test_an_unknown_model_is_404_and_names_the_field(side: Side) -> None:
    result = side.chat(model="nope")
    assert result.status_code == 404
    assert (error_of(result)["code"], error_of(result)["param"]) == ("model_not_found", "model")
    assert side.fleet.jobs == []


def test_a_body_over_the_limit_is_413_by_its_length_or_by_what_comes() -> None:
    side = Side(max_body_mb=1)
    for headers in ({}, {"transfer_encoding": "chunked"}):
        result = side.post("/v1/chat/completions", b" " * (2**20 + 1), **headers)
        assert (result.status_code, error_of(result)["code"]) == (413, "request_too_large")
    assert side.post("/v1/chat/completions", b" " * 2**20).status_code == 400


def test_models_and_single_models_whose_ids_contain_slashes(side: Side) -> None:
    assert side.get("/v1/models").json == {"object": "list", "data": side.fleet.entries}
    assert side.get(f"/v1/models/{MODEL}").json == side.fleet.entries[0]
    assert error_of(side.get("/v1/models/a/b"))["code"] == "model_not_found"


def test_props_are_the_routers_or_a_models_whose_template_they_show(side: Side) -> None:
    router = side.get("/props").json
    assert (router["role"], router["build_info"][:6]) == ("router", "cortex")
    side.fleet.entries[0] |= {"meta": {"n_ctx": 512, "n_slots": 4}, "status": {"value": "unloaded"}}
    item = RenderedItem(job="j", attempt=0, text="", tokens=[], template="{{ t }}", bos="<s>", eos="</s>")
    side.fleet.script = lambda job: [item]
    props = side.get("/props?model=default").json
    assert (props["chat_template"], props["bos_token"], props["eos_token"]) == ("{{ t }}", "<s>", "</s>")
    assert (props["default_generation_settings"]["n_ctx"], props["total_slots"]) == (512, 4)
    assert (props["model_alias"], props["is_sleeping"]) == (MODEL, True)
    assert props["modalities"] == {"vision": False, "audio": False}
    (job,) = side.fleet.jobs
    assert job.answer == "prompt", "nothing is loaded"
    assert error_of(side.get("/props?model=nope"))["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/chat"])
def test_unknown_paths_are_404_in_the_envelope(side: Side, path: str) -> None:
    result = side.get(path)
    assert (result.status_code, error_of(result)["code"]) == (404, "not_found")


def test_anthropic_paths_fail_in_anthropics_envelope(side: Side) -> None:
    for path, status, kind in (
        ("/v1/messages/batches", 404, "not_found_error"),
        ("/v1/messages", 400, "invalid_request_error"),
        ("/v1/messages/count_tokens", 400, "invalid_request_error"),
    ):
        result = side.post(path, {}, x_request_id="req-7")
        assert result.status_code == status
        assert result.json["type"] == "error"
        assert (result.json["error"]["type"], result.json["request_id"]) == (kind, "req-7")


def test_a_method_that_is_not_taken_is_405_and_says_which_are(side: Side) -> None:
    result = side.get("/v1/chat/completions")
    assert (result.status_code, error_of(result)["code"]) == (405, "method_not_allowed")
    assert "POST" in result.headers["allow"]


def test_a_sane_request_id_is_taken_and_another_replaced(side: Side) -> None:
    assert side.get("/version", x_request_id="abc-1.2:3").headers["x-request-id"] == "abc-1.2:3"
    for bad in ("a b", "x" * 129, 'quote"'):
        assert side.get("/version", x_request_id=bad).headers["x-request-id"].startswith("req_")
    side.post("/v1/chat/completions", CHAT, x_request_id="mine")
    assert side.fleet.jobs[0].request_id == "mine"


def test_errors_carry_the_request_id_too(side: Side) -> None:
    assert side.get("/nothing", x_request_id="abc").headers["x-request-id"] == "abc"
    assert side.get("/fleet/status", x_request_id="abc").headers["x-request-id"] == "abc"


def test_the_fleet_is_hidden_where_no_admin_key_is_configured() -> None:
    side = Side(admin=False)
    assert side.get("/fleet/status", authorization=f"Bearer {ADMIN_KEY}").status_code == 404
    assert side.get("/fleet").status_code == 404


def test_the_fleet_is_shown_with_an_admin_key_only(side: Side) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x_api_key": ADMIN_KEY[:-1]}):
        result = side.get("/fleet/status", **headers)
        assert (result.status_code, error_of(result)["code"]) == (401, "invalid_api_key")
        assert side.get("/fleet/anything", **headers).status_code == 401
    for headers in ({"authorization": f"Bearer {ADMIN_KEY}"}, {"x_api_key": ADMIN_KEY}):
        assert side.get("/fleet/status", **headers).json == {"nodes": [], "models": side.fleet.entries}
        assert side.get("/fleet/anything", **headers).status_code == 404


def test_a_client_is_known_by_its_key_or_its_address_never_by_the_key_itself(side: Side) -> None:
    side.post("/v1/chat/completions", CHAT, authorization="Bearer sk-secret")
    side.post("/v1/chat/completions", CHAT, x_api_key="sk-secret")
    side.post("/v1/chat/completions", CHAT)
    first, second, third = (j.principal for j in side.fleet.jobs)
    assert first == second
    assert first.startswith("key:")
    assert "secret" not in first
    assert third == "10.1.2.3"


def test_health_is_always_200_and_readiness_is_not(side: Side) -> None:
    assert side.get("/health").json == {"status": "ok", "reasons": []}
    assert side.get("/readyz").status_code == 200
    side.fleet.state = Health("degraded", ["neuron beast is down"])
    assert side.get("/health").status_code == 200
    assert side.get("/health").json["reasons"] == ["neuron beast is down"]
    assert side.get("/readyz").status_code == 503
    side.fleet.state = Health("impaired", ["one device"])
    assert side.get("/readyz").status_code == 200
    side.lifecycle.is_stopping = True
    assert side.get("/readyz").status_code == 503
    assert side.get("/livez").status_code == 200


def test_the_root_answers_get_and_head(side: Side) -> None:
    assert "/v1" in side.get("/").text
    assert falcon.testing.TestClient(side.app).simulate_head("/").status_code == 200


def test_one_line_is_logged_for_each_request(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    side.fleet.script = lambda job: answer("a", "b")
    with caplog.at_level("INFO", "cortex.access"):
        side.post("/v1/chat/completions", CHAT, x_request_id="abc")
    (record,) = [r for r in caplog.records if r.name == "cortex.access"]
    logged: dict[str, Any] = record.fields  # type: ignore[attr-defined]
    assert record.getMessage() == "POST /v1/chat/completions"
    assert (logged["status"], logged["outcome"], logged["request_id"]) == (200, "ok", "abc")
    assert (logged["model"], logged["dialect"], logged["tokens"]) == (MODEL, "openai_chat", 2)


def test_an_aliass_defaults_reach_the_job(side: Side) -> None:
    side.fleet.aliases["titles"] = Alias(
        model=MODEL, sampling=SamplingDefaults(temperature=0.1), chat_template_kwargs={"brief": True}, priority=130
    )
    assert side.chat(model="titles").status_code == 200
    assert side.chat().status_code == 200
    aliased, plain = side.fleet.jobs
    assert (aliased.sampling.temperature, plain.sampling.temperature) == (0.1, None)
    assert isinstance(aliased.input, Chat)
    assert aliased.input.template_kwargs == {"brief": True}
    assert aliased.priority == plain.priority + 30
