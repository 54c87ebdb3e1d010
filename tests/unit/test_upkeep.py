"""What a neuron does about models and workers that nobody uses."""

from common.messages import Done, Eviction, Hello, Load, Pause, Pin, Refused, Resume, Unload, UnloadModel
from neuron.settings import EvictionSettings, NeuronSettings
from neuron.supervisor.states import State
from tests.support.drive import Drive, cpu, job, profile


def state_of(drive: Drive, device: str = "CPU-0") -> State:
    return drive.machine.host.workers[device].state


def test_an_unused_model_goes_after_its_time_and_a_pinned_one_stays() -> None:
    drive = Drive(models=[profile("a", ttl_s=5.0), profile("b", ttl_s=5.0)]).start().connect()
    for model in "ab":
        drive.peer_says(Load(request=model, model=model))
    drive.peer_says(Pin(request="p", model="b"))
    drive.submit(job("1", "a"))
    drive.pass_time(6.0)
    assert drive.sent_to("CPU-0", UnloadModel) == []
    drive.finish("1")
    drive.pass_time(4.0)
    assert drive.sent_to("CPU-0", UnloadModel) == []
    drive.pass_time(2.0)
    assert [m.model for m in drive.sent_to("CPU-0", UnloadModel)] == ["a"]
    assert drive.machine.host.evictions == {"ttl": 1}
    drive.check()


def test_a_worker_without_a_model_ends_and_the_next_request_starts_another() -> None:
    drive = Drive(settings=NeuronSettings(name="test", idle_exit_s=60.0)).start().connect()
    drive.pass_time(59.0)
    assert state_of(drive) is State.READY
    drive.pass_time(2.0)
    assert state_of(drive) is State.IDLE
    assert [s.role for s in drive.alive.values()] == ["prep"]
    drive.submit(job("1"))
    assert set(drive.tasks) == {"1"}
    drive.finish("1")
    drive.check()


def test_a_load_while_its_worker_is_ending_waits_for_the_next_one() -> None:
    drive = Drive(settings=NeuronSettings(name="test", idle_exit_s=1.0)).start().connect()
    drive.obedient = False
    drive.pass_time(2.0)
    assert state_of(drive) is State.KILLING
    drive.peer_says(Load(request="r", model="m"))
    drive.obedient = True
    drive.die("CPU-0", "status 0")
    assert state_of(drive) is State.READY


def test_a_worker_is_renewed_after_its_loads_but_never_with_work() -> None:
    for settings, advice in ((EvictionSettings(defrag_after_cycles=2), None), (EvictionSettings(), 2)):
        drive = Drive(settings=NeuronSettings(name="test", eviction=settings)).start()
        drive.peer_says(
            Hello(version=(1, 0), incarnation="gw", role="gateway", eviction=Eviction(defrag_after_cycles=advice or 50))
        )
        first = drive.incarnation("CPU-0")
        for serial in "12":
            drive.peer_says(Load(request=serial, model="m"))
            if serial == "1":
                drive.peer_says(Unload(request="u", model="m"))
        drive.submit(job("1"))
        drive.pass_time(30.0)
        assert drive.incarnation("CPU-0") == first
        drive.finish("1")
        drive.pass_time(6.0)
        assert drive.incarnation("CPU-0") != first
        assert drive.machine.host.models["m"].status == "loaded"
        drive.check()


def test_a_paused_device_is_free_when_its_jobs_have_ended_and_comes_back_by_itself() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")]).start().connect()
    drive.peer_says(Load(request="l", model="m", device="CPU-0"))
    drive.submit(job("1"))
    drive.peer_says(Pause(request="p", device="CPU-0", for_s=60.0))
    assert "p" not in [d.request for d in drive.told_of(Done)]
    drive.finish("1")
    assert "p" in [d.request for d in drive.told_of(Done)]
    assert state_of(drive) is State.STOPPED
    drive.submit(job("2"))
    assert drive.tasks["2"][0] == "CPU-1"
    drive.pass_time(61.0)
    assert state_of(drive) is State.READY
    drive.check()


def test_pausing_and_resuming_twice_changes_nothing_and_an_unknown_device_is_refused() -> None:
    drive = Drive().start().connect()
    for request in ("p1", "p2"):
        drive.peer_says(Pause(request=request, device="CPU-0"))
        assert state_of(drive) is State.STOPPED
    for request in ("r1", "r2"):
        drive.peer_says(Resume(request=request, device="CPU-0"))
        assert state_of(drive) is State.READY
    assert [d.request for d in drive.told_of(Done)] == ["p1", "p2", "r1", "r2"]
    drive.peer_says(Pause(request="p3", device="GPU-9"))
    assert "CPU-0" in drive.told_of(Refused)[0].message


def test_a_later_pause_replaces_the_time_of_an_earlier_one() -> None:
    drive = Drive().start().connect()
    drive.peer_says(Pause(request="1", device="CPU-0", for_s=10.0))
    drive.peer_says(Pause(request="2", device="CPU-0"))
    drive.pass_time(20.0)
    assert state_of(drive) is State.STOPPED
