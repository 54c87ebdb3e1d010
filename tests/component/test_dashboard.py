"""The page's files and its stream, with a fleet that plays scripts."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import falcon.testing
import msgspec
import orjson
import pytest

from cortex.access.access import Access
from cortex.access.keys import ApiKey, KeyRing, digest, spell
from cortex.api.status import Lifecycle
from cortex.app import create_app
from cortex.dashboard import live
from cortex.dashboard.activity import Activity
from cortex.dashboard.observer import observe
from cortex.fleet.history import Happened
from cortex.settings import CortexSettings
from tests.support.fake_fleet import MODEL, FakeFleet
from tests.support.harness import ROOT

ADMIN_KEY = "an-admin-key-of-some-length"
FILES = sorted((ROOT / "cortex/dashboard/static").iterdir())


class Side:
    """An application whose requests are told to `activity`."""

    def __init__(self) -> None:
        self.fleet, self.activity, self.lifecycle = FakeFleet(), Activity(), Lifecycle()
        self.ring = KeyRing()
        self.app = create_app(
            CortexSettings(),
            self.fleet,
            Access(frozenset({ADMIN_KEY}), ring=lambda: self.ring),
            self.lifecycle,
            observe=lambda exchange: observe(self.activity, exchange, exchange.began_at + 1.5),
            activity=self.activity,
        )
        self.client = falcon.testing.TestClient(self.app)

    def get(self, path: str, **headers: str) -> falcon.testing.Result:
        """GET."""
        return self.client.simulate_get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture(scope="module", autouse=True)
def falcons_own_loop() -> None:
    """Falcon's test client keeps one event loop for the whole process."""
    falcon.async_to_sync(asyncio.sleep, 0)


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.activity.close()


async def follow(side: Side, until: str, headers: dict[str, str]) -> list[tuple[str, Any]]:
    """Return the events of the stream up to one of that name."""
    received: list[bytes] = []
    is_there = asyncio.Event()
    scope = falcon.testing.create_scope(path="/fleet/live", headers=headers)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        received.append(message.get("body", b""))
        if f"event: {until}\n".encode() in received[-1]:
            is_there.set()

    task = asyncio.create_task(side.app(scope, receive, send))
    await asyncio.wait_for(is_there.wait(), 10)
    side.lifecycle.is_stopping = True
    await asyncio.wait_for(task, 10)
    assert not side.app.active
    blocks = b"".join(received).decode().strip().split("\n\n")
    return [(b.split("\n")[0][7:], orjson.loads(b.split("\n")[1][6:])) for b in blocks]


def test_a_browser_gets_the_page_and_everybody_else_a_line_of_text(side: Side) -> None:
    page = side.get("/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>cortex</title>" in page.text
    for accept in ("*/*", "application/json", ""):
        assert side.get("/", accept=accept).text.startswith("cortex ")
    assert page.headers["vary"] == "accept"
    assert side.client.simulate_head("/", headers={"accept": "text/html"}).status_code == 200


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_each_file_is_served_with_a_policy_that_lets_only_itself_run(side: Side, file: Any) -> None:
    result = side.get(f"/dashboard/{file.name}")
    assert result.content == file.read_bytes()
    policy = result.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert result.headers["x-content-type-options"] == "nosniff"
    again = side.get(f"/dashboard/{file.name}", if_none_match=result.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/page.py", "../../settings.py"])
def test_nothing_else_is_served(side: Side, name: str) -> None:
    assert side.get(f"/dashboard/{name}").status_code == 404


def test_the_page_can_neither_be_injected_into_nor_speaks_to_other_hosts() -> None:
    text = {f.name: f.read_text() for f in FILES}
    for name, source in text.items():
        for never in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function"):
            assert never not in source, f"{name} uses {never}"
        urls = set(re.findall(r"https?://[^\s\"'`)>]+", source)) - {"http://www.w3.org/2000/svg"}
        assert not urls, f"{name} names {urls}"
    assert not re.search(r"\son[a-z]+=|<script>|<style|style=", text["index.html"])


def test_the_stream_is_for_admins_and_absent_without_activity(side: Side) -> None:
    assert side.get("/fleet/live").status_code == 401
    plain = create_app(CortexSettings(), side.fleet, Access(frozenset({ADMIN_KEY})), side.lifecycle)
    client = falcon.testing.TestClient(plain)
    assert client.simulate_get("/fleet/live", headers={"x-api-key": ADMIN_KEY}).status_code == 404


def test_the_stream_begins_with_all_there_is_and_ends_with_the_process(side: Side) -> None:
    side.fleet.events = [Happened(serial=4, at=1.0, node="beast", level="info", subject="model", what="model loaded")]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    side.client.simulate_post("/v1/chat/completions", json=body)
    side.client.simulate_post("/v1/chat/completions", json={**body, "model": "nope"})
    side.activity.report(0, 0)
    told = asyncio.run(follow(side, "pulse", {"x-api-key": ADMIN_KEY}))
    kinds = dict(told)
    assert [k for k, _ in told] == ["state", "requests", "happened", "pulse"]
    assert kinds["state"]["health"]["status"] == "ok"
    assert kinds["state"]["models"] == side.fleet.entries
    first, second = kinds["requests"]
    assert (first["model"], first["outcome"], first["tokens"], first["seconds"]) == (MODEL, "ok", 2, 1.5)
    assert (second["model"], second["outcome"], second["status"]) == ("nope", "model_not_found", 404)
    assert kinds["happened"][0]["what"] == "model loaded"
    assert kinds["pulse"] == {"tokens_per_s": 0.0, "running": 0}


def test_a_viewer_whose_key_is_revoked_sees_no_more(side: Side) -> None:
    text = spell("0" * 8, "a" * 48)
    entry = ApiKey(id="0" * 8, hash=digest(text), row=0, created_at=0, role="admin")
    side.ring = KeyRing([entry])

    async def main() -> None:
        began, told = asyncio.Event(), []
        scope = falcon.testing.create_scope(path="/fleet/live", headers={"x-api-key": text})

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            told.append(message)
            if message.get("body"):
                began.set()

        task = asyncio.create_task(side.app(scope, receive, send))
        await asyncio.wait_for(began.wait(), 10)
        side.ring = KeyRing([msgspec.structs.replace(entry, revoked_at=1)])
        await asyncio.wait_for(task, 10)
        assert told[0]["status"] == 200

    asyncio.run(main())


def test_no_more_viewers_than_a_process_can_bear(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "VIEWERS", 0)
    result = side.get("/fleet/live", x_api_key=ADMIN_KEY)
    assert (result.status_code, result.headers["retry-after"]) == (503, "5")
