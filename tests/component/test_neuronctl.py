"""neuronctl against a scripted neuron: what it sends, how long it waits, what it prints, how it ends."""

import sys
import threading
from collections.abc import Callable, Iterator

import msgspec
import orjson
import pytest
import zmq

from common.codec import decode_to_neuron, encode
from common.errors import Code
from common.messages import (
    ClearCache,
    DeviceState,
    Discover,
    DiscoverReply,
    Done,
    Drain,
    FromNeuron,
    Health,
    HealthReply,
    Hello,
    HelloWanted,
    JobRow,
    Load,
    Memory,
    MemoryReply,
    Models,
    ModelsReply,
    ModelState,
    Progress,
    Refused,
    ReplicaState,
    RestartWorker,
    Status,
    StatusReply,
    ToNeuron,
    Undrain,
    Unload,
    Version,
    VersionReply,
)
from common.sockets import bus_router
from neuron.ctl.__main__ import main
from tests.support.fake_neuron import node_state

TIMEOUT = "0.4"
UUID = "GPU-12345678-1234-1234-1234-123456789abc"
Answer = Callable[[ToNeuron], list[FromNeuron | bytes]]


class Script:
    """A ROUTER in a thread that answers every message with what `answer` returns."""

    def __init__(self) -> None:
        self.received: list[ToNeuron] = []
        self.answer: Answer = lambda _: []
        self.hello: list[FromNeuron | bytes] = [node_state()]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = bus_router(self._context, "tcp://127.0.0.1:*")
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            if not self._socket.poll(10):
                continue
            peer, frame = self._socket.recv_multipart()
            message = decode_to_neuron(frame)
            self.received.append(message)
            for reply in self.hello if isinstance(message, Hello) else self.answer(message):
                self._socket.send_multipart([peer, reply if isinstance(reply, bytes) else encode(reply)])


@pytest.fixture
def script() -> Iterator[Script]:
    neuron = Script()
    yield neuron
    neuron.close()


@pytest.fixture
def ctl(script: Script, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run neuronctl in this process; return its exit status."""
    monkeypatch.setenv("NEURON_ENDPOINT", script.endpoint)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["neuronctl", "--timeout", TIMEOUT, *arguments])
        return main()

    return run


def request_of(message: ToNeuron) -> str:
    request: str = getattr(message, "request")  # noqa: B009 # every admin request has one, the union's others do not
    return request


def done(text: str = "done") -> Answer:
    return lambda message: [Done(request=request_of(message), text=text)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["load", "m"], Load(request="", model="m")),
        (["load", "m", "--device", "d"], Load(request="", model="m", device="d")),
        (["unload", "m", "--device", "d"], Unload(request="", model="m", device="d")),
        (["clear-cache"], ClearCache(request="")),
        (["clear-cache", "m"], ClearCache(request="", model="m")),
        (["drain"], Drain(request="", scope="node")),
        (["drain", "--model", "m"], Drain(request="", scope="model", target="m")),
        (["drain", "--device", "d"], Drain(request="", scope="device", target="d")),
        (["undrain", "--device", "d"], Undrain(request="", scope="device", target="d")),
        (["restart", "d"], RestartWorker(request="", device="d")),
    ],
)
def test_a_command_asks_for_what_it_says(
    script: Script,
    ctl: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: ToNeuron,
) -> None:
    script.answer = done("as you wish")
    assert ctl(*arguments) == 0
    assert capsys.readouterr().out == "as you wish\n"
    hello, question = script.received
    assert isinstance(hello, Hello)
    assert hello.role == "admin"
    assert msgspec.structs.replace(question, request="") == expected


@pytest.mark.parametrize(
    ("command", "kind", "reply", "words"),
    [
        ("status", Status, StatusReply(request="", state=node_state()), "beast: serving"),
        ("models", Models, ModelsReply(request="", models=[]), "no models"),
        ("devices", Discover, DiscoverReply(request="", devices=[]), "DEVICE"),
        ("health", Health, HealthReply(request="", status="impaired", reasons=["a reason"]), "impaired\n  a reason\n"),
        ("memory", Memory, MemoryReply(request="", workers=[]), "CELLS"),
        ("version", Version, VersionReply(request="", version="7.0", protocol=(1, 0)), "neuron 7.0, protocol 1.0"),
    ],
)
def test_a_question_is_answered_as_text_and_as_json(
    script: Script,
    ctl: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: type[ToNeuron],
    reply: FromNeuron,
    words: str,
) -> None:
    script.answer = lambda m: [msgspec.structs.replace(reply, request=request_of(m))] if isinstance(m, kind) else []
    assert ctl(command) == 0
    assert words in capsys.readouterr().out
    assert ctl(command, "--json") == 0
    assert orjson.loads(capsys.readouterr().out)["request"] == request_of(script.received[-1])


def test_a_long_silence_is_no_end_while_the_neuron_lives(script: Script, ctl: Callable[..., int]) -> None:
    probes: list[Version] = []

    def drain_through_four_probes(message: ToNeuron) -> list[FromNeuron | bytes]:
        if not isinstance(message, Version):
            return []
        probes.append(message)
        replies: list[FromNeuron | bytes] = [VersionReply(request=message.request, version="1", protocol=(1, 0))]
        if len(probes) == 4:
            replies += done()(script.received[1])
        return replies

    script.answer = drain_through_four_probes
    assert ctl("drain") == 0
    assert len(probes) == 4


def test_a_neuron_that_dies_in_the_middle_is_said_to_be_gone(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    script.answer = lambda m: [Progress(request=m.request, text="loading", fraction=0.5)] if isinstance(m, Load) else []
    assert ctl("load", "m") == 3
    out, err = capsys.readouterr()
    assert out == ""
    host = script.endpoint.removeprefix("tcp://")
    assert err.startswith(
        f"neuronctl: no neuron answers at {host} within 0.4 s; is it running (systemctl status neuron)"
    )


def test_a_neuron_that_was_restarted_in_the_middle_is_said_to_be(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    script.answer = lambda m: [HelloWanted()] if isinstance(m, Version) else []
    assert ctl("load", "m") == 1
    assert "was restarted meanwhile; try again" in capsys.readouterr().err


def test_a_neuron_that_does_not_greet_is_nobody(script: Script, ctl: Callable[..., int]) -> None:
    script.hello = []
    assert ctl("status") == 3


@pytest.mark.parametrize("is_at_hello", [True, False])
def test_a_refusal_is_one_line_on_stderr(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str], is_at_hello: bool
) -> None:
    refusal = Refused(code=Code.INVALID_VALUE, message="protocol 9 is wanted, this neuron speaks 1")
    if is_at_hello:
        script.hello = [refusal]
    script.answer = lambda m: [msgspec.structs.replace(refusal, request=request_of(m))]
    assert ctl("load", "m") == 1
    assert capsys.readouterr() == ("", f"neuronctl: {refusal.message}\n")


def test_what_is_no_message_is_an_error_and_no_traceback(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    script.hello = [b"\xc1 garbage"]
    assert ctl("status") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("neuronctl: ")
    assert "Traceback" not in err


def test_replies_to_others_are_not_taken_for_ones_own(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    others: list[FromNeuron | bytes] = [
        Done(request="another", text="not yours"),
        Refused(request="another", code=Code.BUSY, message="not yours"),
        Progress(request="another", text="not yours"),
    ]
    script.answer = lambda m: [*others, *done("yours")(m)]
    assert ctl("load", "m") == 0
    assert capsys.readouterr() == ("yours\n", "")


@pytest.mark.parametrize("text", ["nan", "-1", "0", "inf", "soon"])
def test_a_timeout_that_is_none_is_wrong_usage(ctl: Callable[..., int], text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        ctl(f"--timeout={text}", "status")
    assert ended.value.code == 2


def table(script: Script) -> None:
    """Answer `status` with long names, reasons and a job."""
    device = DeviceState(
        uuid=UUID, name="NVIDIA GeForce RTX 5090", kind="cuda", state="unavailable", reason="reload the driver",
        memory_mb=32607, reserved_mb=20000, used_mb=21000, worker_pid=123456, restarts=2, backend="CUDA",
    )  # fmt: skip
    models = [
        ModelState(
            id="organisation/" + "long-" * 30 + "name", status="failed", reason="the file is truncated",
            replicas=[ReplicaState(device=UUID, status="loaded")], context=131072, kv_tokens=262144, parallel=8,
            memory_mb=20000,
        )
    ]  # fmt: skip
    state = node_state(*models, devices=[device])
    job = JobRow(
        job="a" * 32, attempt=1, request_id="req_" + "b" * 24, model="m", state="running", device=UUID, age_ms=0
    )
    script.answer = lambda m: [StatusReply(request=request_of(m), state=state, jobs=[job])]


def test_a_row_is_one_line_in_a_pipe(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    table(script)
    assert ctl("status") == 0
    lines = capsys.readouterr().out.splitlines()
    device = next(line for line in lines if line.startswith(UUID))
    assert "NVIDIA GeForce RTX 5090" in device
    assert device.split()[-3:] == ["123456", "2", "CUDA"]
    model = next(line for line in lines if line.startswith("organisation/"))
    assert "long-name" in model
    assert model.split()[-2:] == ["20000", "MiB"]
    assert f"  {UUID}: reload the driver" in lines
    assert any(line.endswith("name: the file is truncated") for line in lines)
    assert any("req_" + "b" * 24 in line and UUID in line for line in lines)


def test_a_narrow_terminal_folds_and_cuts_nothing(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table(script)
    monkeypatch.setenv("COLUMNS", "100")
    assert ctl("status") == 0
    out = capsys.readouterr().out
    assert "…" not in out
    reasons = ("reload the driver", "the file is truncated")
    assert max(len(line) for line in out.splitlines() if not any(r in line for r in reasons)) <= 100
