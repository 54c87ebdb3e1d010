"""An admin's orders: over HTTP, over the bus, and from the command line."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from http.server import HTTPServer
from typing import Any

import orjson
import pytest

from common.errors import Code, RequestError
from common.messages import Done, Load, Pin, Progress, Refused, Unload
from cortex.__main__ import main
from cortex.fleet.contract import Errand, Order, Step
from cortex.fleet.fleet import BusFleet
from tests.component.test_api_endpoints import ADMIN_KEY, Side, error_of, falcons_own_loop
from tests.component.test_cold_placement import CATALOGUE, OTHER, loaded, loads, run
from tests.component.test_link_fleet import PATIENCE_S, hurry, until
from tests.support.fake_neuron import MODEL, FakeNeuron
from tests.support.harness import free_port
from tests.support.scripted_server import QuietHandler, serving

__all__ = ["falcons_own_loop", "hurry"]  # autouse fixtures


def post(side: Side, verb: str, body: Any) -> Any:
    return side.post(f"/fleet/{verb}", body, authorization=f"Bearer {ADMIN_KEY}")


def test_an_order_is_answered_line_by_line() -> None:
    side = Side()
    side.fleet.steps = [
        Step(node="a", state="progress", text="loading", fraction=0.5),
        Step(node="a", state="done", text="loaded"),
    ]
    result = post(side, "load", {"model": "m", "node": "a"})
    assert (result.status_code, result.headers["content-type"]) == (200, "application/x-ndjson")
    assert [orjson.loads(line) for line in result.content.splitlines()] == [
        {"node": "a", "state": "progress", "text": "loading", "fraction": 0.5},
        {"node": "a", "state": "done", "text": "loaded"},
    ]
    assert side.fleet.orders == [("load", Order(model="m", node="a"))]


def test_what_is_refused_before_anything_was_done_has_a_status_of_its_own() -> None:
    side = Side()
    side.fleet.steps = [Step(node="a", state="refused", text="no room", code=Code.NO_CAPACITY)]
    result = post(side, "load", {"model": "m"})
    assert (result.status_code, error_of(result)["message"]) == (503, "a: no room")
    side.fleet.steps = [*side.fleet.steps, Step(node="b", state="done", text="gone")]
    assert post(side, "unload", {"model": "m"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "not valid JSON"),
        ({"modell": "m"}, 400, "modell"),
        ({"model": 7}, 400, "model"),
        ({"for_s": -1}, 400, "for_s"),
        (b" " * 70_000, 413, "larger than"),
    ],
)
def test_an_order_that_cannot_be_read_is_refused(body: Any, status: int, text: str) -> None:
    result = post(Side(), "pin", body)
    assert result.status_code == status
    assert text in error_of(result)["message"]


def test_orders_need_the_admin_key() -> None:
    side = Side()
    assert side.post("/fleet/load", {"model": "m"}).status_code == 401
    assert not side.fleet.orders


async def words(errand: Errand) -> list[Step]:
    """Return all that is said."""
    steps = []
    while not errand.is_over:
        step = await errand.next(PATIENCE_S)
        assert step is not None
        steps.append(step)
    errand.close()
    return steps


def test_a_load_of_what_nobody_has_goes_where_all_gateways_agree() -> None:
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleets: list[BusFleet]) -> None:
            ends = [await words(await f.carry_out("load", Order(model="cold"))) for f in fleets for _ in range(2)]
            assert {(s[-1].state, s[-1].node) for s in ends} == {("done", a.name if loads(a) else b.name)}
            assert sum(bool(loads(n)) for n in (a, b)) == 1
            assert all(m.profile == CATALOGUE.models[0] for n in (a, b) for m in loads(n))

        run(test, a, b, gateways=2)


def test_answers_of_several_neurons_come_together_and_a_lost_one_counts_as_refused() -> None:
    with FakeNeuron(loaded("cold"), name="a") as a, FakeNeuron(loaded("cold"), name="b") as b:

        async def test(fleets: list[BusFleet]) -> None:
            errand = await fleets[0].carry_out("unload", Order(model="cold"))
            (ask,) = [await asyncio.to_thread(n.wait_for, Unload) for n in (a,)]
            await asyncio.to_thread(b.wait_for, Unload)
            a.send(Progress(request=ask.request, text="finishing 1 job"))
            a.send(Done(request=ask.request, text="gone"))
            b.mute = True
            steps = await words(errand)
            assert [(s.node, s.state) for s in steps] == [("a", "progress"), ("a", "done"), ("b", "refused")]
            assert steps[-1].code is Code.NEURON_LOST

        run(test, a, b)


def test_a_refusal_of_the_neuron_is_passed_on() -> None:
    with FakeNeuron(loaded("cold"), name="a") as a:

        async def test(fleets: list[BusFleet]) -> None:
            errand = await fleets[0].carry_out("pin", Order(model="cold"))
            ask = await asyncio.to_thread(a.wait_for, Pin)
            a.send(Refused(request=ask.request, code=Code.MODEL_NOT_FOUND, message="never heard of it"))
            (step,) = await words(errand)
            assert (step.state, step.code, step.text) == ("refused", Code.MODEL_NOT_FOUND, "never heard of it")

        run(test, a)


def test_an_errand_whose_admin_has_gone_is_forgotten() -> None:
    with FakeNeuron(loaded("cold"), name="a") as a:

        async def test(fleets: list[BusFleet]) -> None:
            errand = await fleets[0].carry_out("pin", Order(model="cold"))
            ask = await asyncio.to_thread(a.wait_for, Pin)
            errand.close()
            a.send(Done(request=ask.request, text="pinned"))
            await until(lambda: fleets[0].health().status == "ok")
            assert await errand.next(0.05) is None

        run(test, a)


def test_an_order_for_a_model_that_nobody_knows_is_refused() -> None:
    with FakeNeuron(OTHER, name="a") as a:

        async def test(fleets: list[BusFleet]) -> None:
            with pytest.raises(RequestError) as caught:
                await fleets[0].carry_out("load", Order(model="nobody/knows"))
            assert caught.value.code is Code.MODEL_NOT_FOUND
            assert not any(isinstance(m, Load) for m in a.received)

        run(test, a)


class Script(HTTPServer):
    """Answers every POST with `status` and `body`, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body = 200, b""
        self.asked: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(QuietHandler):
    """One order to the scripted gateway."""

    server: Script

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, orjson.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)


@pytest.fixture
def gateway() -> Iterator[Script]:
    with serving(Script()) as server:
        yield server


@pytest.fixture
def cortex(monkeypatch: pytest.MonkeyPatch, gateway: Script) -> Callable[..., int]:
    """Run cortex in this process against the scripted gateway; return its exit status."""
    monkeypatch.setenv("CORTEX_ADMIN_KEY", ADMIN_KEY)

    def run_cortex(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments, "--url", gateway.url])
        return main()

    return run_cortex


def line(**step: Any) -> bytes:
    """Return what one neuron says."""
    return orjson.dumps({"node": "a", **step}) + b"\n"


@pytest.mark.parametrize(
    ("command", "path", "body"),
    [
        ("load m --node a --device d", "/fleet/load", {"model": "m", "node": "a", "device": "d"}),
        ("unload m", "/fleet/unload", {"model": "m"}),
        ("pin m", "/fleet/pin", {"model": "m"}),
        ("unpin m --node a", "/fleet/unpin", {"model": "m", "node": "a"}),
        ("drain a", "/fleet/drain", {"node": "a"}),
        ("drain a --device d", "/fleet/drain", {"node": "a", "device": "d"}),
        ("undrain --model m", "/fleet/undrain", {"model": "m"}),
        ("pause a d --for 2h", "/fleet/pause", {"node": "a", "device": "d", "for_s": 7200.0}),
        ("resume a d", "/fleet/resume", {"node": "a", "device": "d"}),
        ("restart a d", "/fleet/restart", {"node": "a", "device": "d"}),
    ],
)
def test_a_command_becomes_an_order(
    cortex: Callable[..., int],
    gateway: Script,
    capsys: pytest.CaptureFixture[str],
    command: str,
    path: str,
    body: dict[str, Any],
) -> None:
    gateway.body = b"\n" + line(state="progress", text="half", fraction=0.5) + line(state="done", text="it is done")
    assert cortex(*command.split()) == 0
    assert gateway.asked == [(path, body)]
    assert capsys.readouterr().out == "a: it is done\n"


def test_a_refusal_is_told_on_stderr_and_by_the_exit_status(
    cortex: Callable[..., int], gateway: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.body = line(state="done", text="gone") + line(node="b", state="refused", text="is lost")
    assert cortex("unload", "m") == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("a: gone\n", "cortex: b: is lost\n")
    gateway.status, gateway.body = 503, b'{"error":{"message":"a: no room","code":"no_capacity","param":null}}'
    assert cortex("load", "m") == 1
    assert capsys.readouterr().err == "cortex: a: no room\n"
    gateway.status, gateway.body = 401, b'{"error":{"message":"x","code":"invalid_api_key","param":null}}'
    assert cortex("load", "m") == 1
    assert "CORTEX_ADMIN_KEY" in capsys.readouterr().err


def test_doing_it_twice_is_no_failure_and_json_is_for_programs(
    cortex: Callable[..., int], gateway: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.body = b"\n"
    assert cortex("unload", MODEL) == 0
    assert capsys.readouterr().out == "there is nothing to unload\n"
    gateway.body = b'{"node":"a","state":"done","text":"gone"}\n'
    assert cortex("unload", MODEL, "--json") == 0
    assert orjson.loads(capsys.readouterr().out) == [{"node": "a", "state": "done", "text": "gone"}]


def test_nobody_answering_is_exit_status_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cortex", "load", "m", "--url", f"http://127.0.0.1:{free_port()}"])
    assert main() == 3
    assert "is it running?" in capsys.readouterr().err
