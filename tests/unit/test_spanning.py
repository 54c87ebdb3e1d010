"""Models that span several devices: one worker owns them all, and hosts the smaller models of these devices too."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import (
    Abort,
    Done,
    Drain,
    JobKey,
    Load,
    LoadModel,
    Pause,
    Pin,
    Refused,
    RestartWorker,
    Resume,
    ToNeuron,
    Undrain,
    Unload,
)
from neuron.settings import NeuronSettings
from neuron.supervisor import events, report
from neuron.supervisor.states import State
from tests.support.drive import Drive, cpu, job, profile

BIG = profile("big", vram_mb=1000, min_devices=2)


def pair(*models: str, memory_mb: int = 1000, devices: int = 2, settings: NeuronSettings | None = None) -> Drive:
    """A host with two devices, small models of 300 MiB, and one of 1000 MiB that spans two devices."""
    drive = Drive(
        devices=[cpu(f"CPU-{n}", memory_mb) for n in range(devices)],
        models=[BIG, *(profile(m) for m in models)],
        settings=settings,
    )
    return drive.start().connect()


def load(drive: Drive, model: str, device: str | None = None) -> None:
    drive.peer_says(Load(request=f"load {model}", model=model, device=device))
    drive.check()


def serve(drive: Drive, name: str, model: str) -> None:
    """Run one short job, so that the model has served what it was loaded for."""
    drive.submit(job(name, model))
    drive.finish(name)
    drive.pass_time(1.0)
    drive.check()


def where(drive: Drive) -> dict[str, str]:
    """Return the place of each loaded model."""
    host = drive.machine.host
    return {m.id: r.place for m in host.models.values() for r in m.replicas.values() if r.status == "loaded"}


def running_workers(drive: Drive) -> list[tuple[str, ...]]:
    """Return the devices of each worker that runs."""
    return sorted(spawn.devices for spawn in drive.alive.values() if spawn.role == "worker")


def test_one_worker_owns_both_devices_and_hosts_the_small_models_of_either() -> None:
    drive = pair("a", "b")
    load(drive, "a", "CPU-0")
    load(drive, "b", "CPU-1")
    drive.submit(job("1", "big"))
    drive.check()
    assert running_workers(drive) == [("CPU-0", "CPU-1")]
    assert where(drive) == {"a": "CPU-0", "b": "CPU-1", "big": "CPU-0+CPU-1"}
    loads = {m.model: m.devices for m in drive.sent_to("CPU-0", LoadModel)}
    assert loads == {"a": [0], "b": [1], "big": [0, 1]}
    drive.submit(job("2", "a"), job("3", "b"))
    assert {device for device, _ in drive.tasks.values()} == {"CPU-0"}
    for name in "123":
        drive.finish(name)
    drive.check()
    assert set(drive.ends().values()) == {"ended"}
    assert drive.machine.host.ledger.reserved_mb("CPU-0") == drive.machine.host.ledger.reserved_mb("CPU-1") == 800


def test_the_state_shows_whose_worker_owns_a_device() -> None:
    drive = pair()
    load(drive, "big")
    first, second = report.node_state(drive.machine.host, 1).devices
    assert (first.owner, second.owner) == (None, "CPU-0")
    assert first.worker_pid == second.worker_pid
    assert (first.state, second.state, second.reason) == ("ready", "ready", None)
    assert report.status_line(drive.machine.host).startswith("2 of 2 devices serve")
    assert report.health(drive.machine.host) == ("ok", [])


def test_afterwards_each_device_has_its_own_worker_again() -> None:
    drive = pair("a", "b")
    load(drive, "a", "CPU-0")
    load(drive, "b", "CPU-1")
    load(drive, "big")
    drive.submit(job("1", "b"))
    drive.peer_says(Unload(request="u", model="big"))
    drive.pass_time(2.0)
    assert running_workers(drive) == [("CPU-0", "CPU-1")], "a job runs"
    drive.finish("1")
    drive.pass_time(1.0)
    drive.check()
    assert running_workers(drive) == [("CPU-0",), ("CPU-1",)]
    assert where(drive) == {"a": "CPU-0", "b": "CPU-1"}
    drive.submit(job("2", "b"))
    assert drive.tasks["2"][0] == "CPU-1"
    assert [d.request for d in drive.told_of(Done)] == ["load a", "load b", "load big", "u"]


def test_only_what_the_memory_requires_goes_and_a_pinned_model_moves_in() -> None:
    drive = pair("a", "b", "c", memory_mb=900)
    for model, device in (("a", "CPU-0"), ("c", "CPU-0"), ("b", "CPU-1")):
        load(drive, model, device)
        serve(drive, f"for {model}", model)
    drive.peer_says(Pin(request="p", model="a"))
    drive.submit(job("1", "big"))
    drive.check()
    assert where(drive) == {"a": "CPU-0", "b": "CPU-1", "big": "CPU-0+CPU-1"}
    assert "made room for big" in (drive.machine.host.models["c"].unloaded_because or "")


def test_a_job_that_runs_is_not_cut_and_new_ones_wait_for_the_new_worker() -> None:
    drive = pair("a")
    load(drive, "a", "CPU-1")
    drive.submit(job("long", "a"))
    drive.submit(job("big", "big"))
    drive.submit(job("queued", "a"))
    drive.pass_time(5.0)
    assert set(drive.tasks) == {"long"}
    assert running_workers(drive) == [("CPU-0",), ("CPU-1",)]
    drive.finish("long")
    drive.check()
    assert set(drive.tasks) == {"big", "queued"}
    assert running_workers(drive) == [("CPU-0", "CPU-1")]


def test_a_plan_that_nobody_waits_for_any_more_lets_the_small_models_go_on() -> None:
    drive = pair("a")
    load(drive, "a", "CPU-1")
    drive.submit(job("long", "a"))
    drive.submit(job("big", "big"), job("queued", "a"))
    drive.peer_says(Abort(jobs=[JobKey("big", 1)]))
    drive.check()
    assert set(drive.tasks) == {"long", "queued"}
    assert running_workers(drive) == [("CPU-0",), ("CPU-1",)]


def test_a_small_model_comes_to_a_shared_worker_where_there_is_room() -> None:
    drive = pair("a")
    load(drive, "big")
    drive.submit(job("1", "a"))
    drive.check()
    assert drive.tasks["1"][0] == "CPU-0"
    assert where(drive)["a"] in ("CPU-0", "CPU-1")
    assert running_workers(drive) == [("CPU-0", "CPU-1")]


def test_a_small_model_displaces_the_big_one_where_there_is_no_room() -> None:
    drive = pair("a", memory_mb=600)
    load(drive, "big")
    serve(drive, "0", "big")
    drive.submit(job("1", "a"))
    drive.finish("1")
    drive.pass_time(1.0)
    drive.check()
    assert list(where(drive)) == ["a"]
    assert running_workers(drive) == [("CPU-0",), ("CPU-1",)]


def test_a_worker_of_two_devices_that_dies_comes_back_with_all_it_held() -> None:
    drive = pair("a", "b")
    load(drive, "a", "CPU-0")
    load(drive, "b", "CPU-1")
    load(drive, "big")
    drive.submit(job("1", "b"))
    drive.die("CPU-0")
    drive.check()
    assert drive.ends() == {"1": "worker_died"}
    assert running_workers(drive) == [("CPU-0", "CPU-1")]
    assert where(drive) == {"a": "CPU-0", "b": "CPU-1", "big": "CPU-0+CPU-1"}


@pytest.mark.parametrize("device", ["CPU-0", "CPU-1"])
def test_a_pause_of_either_device_gives_the_other_one_back_and_a_resume_brings_the_model_again(device: str) -> None:
    drive = pair("a", "b")
    other = "CPU-1" if device == "CPU-0" else "CPU-0"
    load(drive, "a", device)
    load(drive, "b", other)
    load(drive, "big")
    drive.submit(job("1", "b"))
    drive.peer_says(Pause(request="p", device=device))
    drive.check()
    assert [d.request for d in drive.told_of(Done)][3:] == []
    drive.finish("1")
    drive.check()
    assert [d.request for d in drive.told_of(Done)][3:] == ["p"]
    assert running_workers(drive) == [(other,)]
    assert where(drive) == {"b": other}
    drive.peer_says(Resume(request="r", device=device))
    drive.pass_time(1.0)
    drive.check()
    assert running_workers(drive) == [("CPU-0", "CPU-1")]
    assert where(drive) == {"a": device, "b": other, "big": "CPU-0+CPU-1"}


def test_a_shared_worker_in_quarantine_leaves_the_other_device_serving() -> None:
    drive = pair("a", "b")
    load(drive, "a", "CPU-0")
    load(drive, "b", "CPU-1")
    load(drive, "big")
    for _ in range(20):
        if drive.machine.host.workers["CPU-0"].state is State.QUARANTINED:
            break
        if any(s.name == "CPU-0" for s in drive.alive.values()):
            drive.die("CPU-0", "signal SIGSEGV")
        drive.pass_time(1.0)
    drive.check()
    assert running_workers(drive) == [("CPU-1",)]
    assert where(drive) == {"a": "CPU-1", "b": "CPU-1"}, "what fits moves over"
    drive.peer_says(RestartWorker(request="r", device="CPU-0"))
    drive.pass_time(1.0)
    drive.check()
    assert where(drive) == {"a": "CPU-1", "b": "CPU-1"}, "nobody makes room for what nobody asks for"


def test_a_host_with_too_few_devices_says_so() -> None:
    drive = pair(devices=1)
    model = drive.machine.host.models["big"]
    assert model.shortfall == "it needs 2 served devices (min_devices), and this host has 1"
    load(drive, "big")
    (refused,) = drive.told_of(Refused)
    assert "fewer than 2 devices" in refused.message


def test_of_three_devices_those_two_are_taken_that_have_room() -> None:
    drive = pair("a", "b", devices=3, memory_mb=700)
    load(drive, "a", "CPU-1")
    serve(drive, "0", "a")
    load(drive, "big")
    assert where(drive) == {"a": "CPU-1", "big": "CPU-0+CPU-2"}
    assert running_workers(drive) == [("CPU-0", "CPU-2"), ("CPU-1",)]


def test_what_spanned_devices_is_loaded_again_after_a_restart_of_the_neuron() -> None:
    before = pair("a")
    load(before, "a", "CPU-1")
    load(before, "big")
    saved = before.machine._keeper._take()
    after = Drive(devices=[cpu("CPU-0", 1000), cpu("CPU-1", 1000)], models=[BIG, profile("a")])
    after.feed(events.Started(saved, 0.0))
    after.pass_time(1.0)
    after.check()
    assert where(after) == {"a": "CPU-1", "big": "CPU-0+CPU-1"}


def test_a_preloaded_model_that_spans_devices_comes_up() -> None:
    drive = pair("a", settings=NeuronSettings(name="test", preload=["big", "a"]))
    drive.pass_time(1.0)
    drive.check()
    assert sorted(where(drive)) == ["a", "big"]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(["a", "b", "c", "big", "huge"]), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("abort"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("die"), st.sampled_from(["CPU-0", "CPU-1", "CPU-2"]), st.just(0)),
        st.tuples(st.just("unload"), st.sampled_from(["a", "b", "c", "big", "huge"]), st.just(0)),
        st.tuples(st.just("replace"), st.sampled_from(["a", "b", "c", "big", "huge"]), st.just(0)),
        st.tuples(st.just("load-at"), st.sampled_from(["a", "b", "c", "big", "huge"]), st.integers(0, 2)),
        st.tuples(st.sampled_from(["drain", "undrain", "restart"]), st.just(""), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 20)),
    ),
    max_size=30,
)


@given(steps)
def test_no_memory_is_promised_twice_and_every_request_ends(script: list[tuple[str, str, int]]) -> None:
    sizes = [("a", 300, 1), ("b", 300, 1), ("c", 450, 1), ("big", 700, 2), ("huge", 1300, 3)]
    drive = Drive(
        devices=[cpu("CPU-0", 500), cpu("CPU-1", 700), cpu("CPU-2", 600)],
        models=[profile(m, vram_mb=mb, min_devices=n, parallel=1) for m, mb, n in sizes],
    )
    drive.start().connect()
    submitted: set[str] = set()
    aborted: set[str] = set()
    asked: set[str] = set()
    for serial, (what, name, number) in enumerate(script):
        request, device = f"r{serial}", f"CPU-{number % 3}"
        entries = drive.machine.host.jobs.entries()
        running = set(drive.tasks) if what not in ("die", "restart") else set()
        if what == "submit":
            submitted.add(f"j{serial}")
            drive.submit(job(f"j{serial}", name))
        elif what == "finish" and drive.tasks:
            drive.finish(sorted(drive.tasks)[number % len(drive.tasks)])
        elif what == "abort" and entries:
            victim = entries[number % len(entries)].job.id
            aborted.add(victim)
            drive.tasks.pop(victim, None)
            drive.peer_says(Abort(jobs=[JobKey(victim, 1)]))
        elif what == "die" and name in [s.name for s in drive.alive.values()]:
            drive.die(name)
        elif what in ("unload", "load-at", "replace", "drain", "undrain", "restart"):
            asked.add(request)
            orders: dict[str, ToNeuron] = {
                "unload": Unload(request=request, model=name or "a"),
                "load-at": Load(request=request, model=name or "a", device=device),
                "replace": Load(request=request, model=name or "a", replace=True),
                "drain": Drain(request=request, scope="device", target=device),
                "undrain": Undrain(request=request, scope="device", target=device),
                "restart": RestartWorker(request=request, device=device),
            }
            drive.peer_says(orders[what])
        elif what == "wait":
            drive.pass_time(float(number))
        drive.check()
        cut = {j for j in running if drive.ends().get(j) == "worker_died"}
        assert not cut, f"{what} cut running jobs"
    for number in range(3):
        drive.peer_says(Undrain(request="", scope="device", target=f"CPU-{number}"))

    def answered() -> set[str]:
        return {m.request for m in drive.told["gw"] if isinstance(m, Done | Refused) and m.request in asked}

    for _ in range(300):
        drive.pass_time(1.0)
        if drive.tasks:
            drive.finish(min(drive.tasks))
        drive.check()
        host = drive.machine.host
        is_busy = len(host.jobs) or host.wants or host.regroups or host.draining_devices
        # A request may also wait for a worker that comes back only after a while, having died several times in a row.
        if not is_busy and answered() == asked:
            break
    host = drive.machine.host
    assert (len(host.jobs), host.wants, host.regroups, host.held) == (0, {}, [], set())
    ends = drive.ends()
    assert submitted - aborted <= set(ends) <= submitted
    assert {ends[j] for j in submitted - aborted} <= {"ended", "worker_died", "device_unavailable", "no_capacity"}
    assert answered() == asked
    spanned = [r.devices for m in host.models.values() for r in m.replicas.values() if len(r.devices) > 1]
    for one, other in itertools.combinations(spanned, 2):
        assert set(one).isdisjoint(other) or host.owner(one[0]) == host.owner(other[0])
