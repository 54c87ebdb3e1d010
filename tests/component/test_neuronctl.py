"""neuronctl against a scripted neuron: what it sends, how long it waits, what it prints, how it ends."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from signal import SIGINT, raise_signal

import msgspec
import orjson
import pytest
import zmq

from common.codec import decode_to_neuron, encode
from common.errors import Code
from common.messages import (
    CancelJobs,
    ClearCache,
    DeviceState,
    Discover,
    DiscoverReply,
    Done,
    Drain,
    EventsReply,
    FromNeuron,
    Health,
    HealthReply,
    Hello,
    HelloWanted,
    JobProgress,
    JobRow,
    LifecycleEvent,
    Load,
    LogReply,
    Memory,
    MemoryReply,
    ModelMemory,
    Models,
    ModelsReply,
    ModelState,
    Progress,
    ReadEvents,
    ReadLog,
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
    WorkerMemory,
)
from common.sockets import bus_router
from neuron.ctl import happenings
from neuron.ctl.__main__ import main
from tests.support.fake_neuron import node_state

TIMEOUT = "0.4"
UUID = "GPU-12345678-1234-1234-1234-123456789abc"
Answer = Callable[[ToNeuron], Iterable[FromNeuron | bytes]]


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
        ("status", Status, StatusReply(request="", state=node_state(exposed=True)), "warning: its bus is plain text"),
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


def lively(script: Script) -> None:
    """Answer as a neuron with a model, two jobs, and a past."""
    device = DeviceState(
        uuid=UUID, name="NVIDIA GeForce RTX 5090", kind="cuda", state="ready", phase="decode", memory_mb=32607,
        reserved_mb=20000, used_mb=21000, utilization=0.93, temperature_c=61, power_w=420, worker_pid=123, restarts=1,
        steps=77, backend="CUDA",
    )  # fmt: skip
    model = ModelState(id="qwen/32b", status="loaded", replicas=[ReplicaState(device=UUID, status="loaded")], running=1,
                       queued=1, parallel=4)  # fmt: skip
    jobs = [
        JobRow(job="a" * 32, attempt=1, request_id="req_a", model="qwen/32b", state="running", device=UUID, age_ms=900),
        JobRow(job="b" * 32, attempt=1, request_id="req_b", model="qwen/32b", state="queued", age_ms=1500),
    ]
    tokens = [1000]

    def answer(message: ToNeuron) -> list[FromNeuron | bytes]:
        request = request_of(message)
        match message:
            case Status():
                return [StatusReply(request=request, state=node_state(model, devices=[device]), jobs=jobs, peers=2)]
            case Memory():
                tokens[0] += 50
                held = ModelMemory(model="qwen/32b", weights_mb=1, kv_mb=1, kv_tokens=8000, kv_used=6000, sequences=1)
                progress = JobProgress(job="a" * 32, phase="prefill", prompt_n=400, done_n=100, tokens=0)
                worker = WorkerMemory(device=UUID, process_mb=1, models=[held], jobs=[progress], tokens=tokens[0])
                return [MemoryReply(request=request, workers=[worker])]
            case ReadEvents(since=since):
                events = [
                    LifecycleEvent(cursor=c, age_ms=0, level="warning", subject="device", what="worker ended",
                                   reason="signal SIGKILL", device=UUID)
                    for c in (1, 2, 3) if c > since
                ]  # fmt: skip
                return [EventsReply(request=request, incarnation="x", events=events)]
            case ReadLog(since=since):
                lines = ["one", "two", "three"][since:]
                return [LogReply(request=request, incarnation="x", cursor=3, lines=lines)]
            case Version():
                return [VersionReply(request=request, version="7.0", protocol=(1, 0))]
            case CancelJobs():
                return list(done(f"cancelled {message.target}")(message))
        return []

    script.answer = answer


def test_top_shows_devices_models_requests_and_speed(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    lively(script)
    assert ctl("top", "--once", "--interval", "0.1") == 0
    out = capsys.readouterr().out
    device = next(line for line in out.splitlines() if line.startswith(UUID))
    for word in ("ready decode", "21000/32607 MiB", "93 %", "61 °C", "420 W"):
        assert word in device
    rate = float(device.split()[-2])
    assert 50 < rate < 600
    model = next(line for line in out.splitlines() if line.startswith("qwen/32b"))
    assert "1/4" in model
    assert "6000/8000" in model
    assert "prefill 25%" in out
    assert "worker ended: signal SIGKILL" in out


def test_requests_are_listed_with_phase_and_tokens_and_cancelled(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    lively(script)
    assert ctl("requests") == 0
    _, queued, running = capsys.readouterr().out.splitlines()
    assert queued.split()[:7] == ["b" * 12, "req_b", "qwen/32b", "queued", "1.5", "s", "-"]
    assert "prefill 25%" in running
    assert ctl("requests", "cancel", "req_a") == 0
    assert capsys.readouterr().out == "cancelled req_a\n"
    assert ctl("requests", "cancel") == 2


def test_workers_and_ping(script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    lively(script)
    assert ctl("workers") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:6] == [UUID, "123", "ready", "decode", "1", "77"]
    assert ctl("ping", "-c", "2") == 0
    assert "(min / mean / max of 2)" in capsys.readouterr().out
    assert ctl("ping", "--json") == 0
    assert orjson.loads(capsys.readouterr().out)["count"] == 4


def test_events_and_logs_begin_where_they_are_asked_to(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    lively(script)
    assert ctl("events", "--since", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["2", "3"]
    assert lines[0].endswith(f"warning {UUID}: worker ended: signal SIGKILL")
    assert ctl("events", "--last", "1", "--json") == 0
    assert orjson.loads(capsys.readouterr().out)["cursor"] == 3
    assert ctl("logs", UUID, "--last", "2") == 0
    assert capsys.readouterr().out == "two\nthree\n"


def test_following_shows_each_event_once_and_survives_a_restart_of_the_neuron(
    script: Script, ctl: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = iter([("x", [1, 2]), ("x", [3]), None, ("y", [1]), ("y", [1])])
    monkeypatch.setattr(happenings, "FOLLOW_S", 0.01)

    def answer(message: ToNeuron) -> list[FromNeuron | bytes]:
        if not isinstance(message, ReadEvents):
            return []
        life = next(lives, ())
        if life is None:
            return [HelloWanted()]
        if not life:
            raise_signal(SIGINT)
            return []
        events = [
            LifecycleEvent(cursor=c, age_ms=0, level="info", subject="node", what=f"{life[0]}{c}") for c in life[1]
        ]
        return [EventsReply(request=message.request, incarnation=life[0], events=events)]

    script.answer = answer
    assert ctl("events", "--follow") == 130
    out, err = capsys.readouterr()
    assert [line.split()[-1] for line in out.splitlines()] == ["x1", "x2", "x3", "y1"]
    assert err.count("restarted") == 2


def test_completion_is_printed(ctl: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("completion", "fish") == 0
    assert "complete -c neuronctl" in capsys.readouterr().out
