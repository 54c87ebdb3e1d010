"""Who is blamed for a worker's death, and what follows for the others."""

import os
from collections.abc import Iterator

import pytest

from common.errors import Code
from common.messages import Drain, Failed, Job, ModelState, NodeState, Pulse, Sampling, Text, Unload
from common.poison import fingerprint
from neuron.process import breadcrumb
from neuron.process.breadcrumb import Breadcrumb, Trace
from neuron.settings import NeuronSettings, RestartSettings
from neuron.supervisor.inquest import CONVICTED_S, TRIAL_STEPS, Inquest
from tests.support.drive import Drive, cpu, profile


def job(name: str, text: str = "", *, attempt: int = 1, strikes: int = 0, shared: int = 0, model: str = "m") -> Job:
    """Return a job that asks for something of its own, or for `text`."""
    return Job(
        id=name, attempt=attempt, model=model, request_id="r", input=Text(text=text or name),
        strikes=strikes, shared_deaths=shared,
    )  # fmt: skip


def again(drive: Drive, name: str, text: str = "") -> None:
    """Submit a job's next attempt, with what the last Failed held against it."""
    item = [i for m in drive.told_of(Failed) for i in m.items if i.job == name][-1]
    drive.submit(
        job(name, text, attempt=item.attempt + 1, strikes=item.strikes, shared=item.shared_deaths)
    )  # fmt: skip


def codes(drive: Drive, name: str) -> list[str]:
    """Return how each attempt of a job ended."""
    return [i.code.value for m in drive.told_of(Failed) for i in m.items if i.job == name]


@pytest.fixture
def fd() -> Iterator[int]:
    trace = breadcrumb.create()
    yield trace
    os.close(trace)


def test_a_trace_names_the_batch_or_the_one_job_that_is_computed(fd: int) -> None:
    crumb = Breadcrumb(fd)
    assert breadcrumb.read(fd) == Trace(0, ())
    crumb.batch(["a", "b"])
    assert breadcrumb.read(fd) == Trace(0, ("a", "b"))
    crumb.member(1)
    assert breadcrumb.read(fd) == Trace(0, ("b",))
    crumb.done(3)
    assert breadcrumb.read(fd) == Trace(3, ())
    crumb.batch(["c"])
    assert breadcrumb.read(fd) == Trace(3, ("c",))


def test_a_trace_of_more_jobs_than_fit_is_cut_and_still_read(fd: int) -> None:
    Breadcrumb(fd).batch([f"{i:032x}" for i in range(5000)])
    assert len(breadcrumb.read(fd).named) > 1000


def test_a_fingerprint_is_of_what_is_asked_and_of_nothing_else() -> None:
    first = job("a", "same")
    assert fingerprint(first) == fingerprint(job("b", "same", attempt=4, strikes=1, shared=2))
    assert fingerprint(first) != fingerprint(job("a", "other"))
    assert fingerprint(first) != fingerprint(job("a", "same", model="n"))
    seeded = [Job(id="x", attempt=1, model="m", request_id="r", input=Text(text="same"), sampling=Sampling(seed=s))
              for s in (1, 2)]  # fmt: skip
    assert fingerprint(seeded[0]) == fingerprint(seeded[1])


def test_two_strikes_convict_and_ten_minutes_pardon() -> None:
    inquest = Inquest()
    assert inquest.blame([job("a", "bad")], 0.0)["a"].strikes == 1
    assert not inquest.is_convicted(job("a", "bad"))
    found = inquest.blame([job("z", "bad")], 1.0)["z"]  # the same request, sent again by somebody
    assert found.is_convicted
    assert inquest.is_convicted(job("b", "bad"))
    assert not inquest.expire(CONVICTED_S)
    assert inquest.expire(CONVICTED_S + 2.0)
    assert inquest.convicted == []


def test_a_strike_from_another_neuron_counts() -> None:
    assert Inquest().blame([job("a", strikes=1)], 0.0)["a"].is_convicted


def test_a_batch_accuses_nobody_the_first_time_and_two_answers_to_one_request_are_one() -> None:
    inquest = Inquest()
    found = inquest.blame([job("a"), job("b")], 0.0)
    assert {f.strikes for f in found.values()} == {0}
    assert {f.shared_deaths for f in found.values()} == {1}
    assert {f.strikes for f in inquest.blame([job("n1", "twice"), job("n2", "twice")], 0.0).values()} == {1}


def test_a_request_that_ends_workers_is_refused_after_two_and_everybody_hears_of_it() -> None:
    drive = Drive().start().connect()
    drive.submit(job("bad"), job("good"))
    drive.die("CPU-0", "signal SIGSEGV", named=["bad"], steps=3)
    again(drive, "bad")
    again(drive, "good")
    drive.die("CPU-0", "signal SIGSEGV", named=["bad"], steps=3)
    assert codes(drive, "bad") == ["worker_died", "poisoned_request"]
    assert codes(drive, "good") == ["worker_died", "worker_died"]
    drive.pass_time(0.2)
    assert [s.poisoned for s in drive.told_of(NodeState)][-1] == [fingerprint(job("bad"))]
    drive.submit(job("later", "bad"))
    assert codes(drive, "later") == ["poisoned_request"]
    again(drive, "good")
    drive.finish("good")
    assert drive.machine.host.workers["CPU-0"].restarts == 2
    drive.pass_time(CONVICTED_S + 1.0)
    drive.submit(job("much-later", "bad"))
    drive.finish("much-later")
    drive.check()


def test_the_same_request_that_waits_or_runs_elsewhere_is_refused_with_it() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")], models=[profile("m", parallel=1)]).start().connect()
    for name in ("first", "second", "third"):
        drive.submit(job(name, "bad"))
    device = drive.tasks["first"][0]
    drive.die(device, "signal SIGABRT", named=["first"])
    assert codes(drive, "first") == ["worker_died"]
    device = drive.tasks["second"][0]
    drive.die(device, "signal SIGABRT", named=["second"])
    assert codes(drive, "second") == ["poisoned_request"]
    assert codes(drive, "third") == ["poisoned_request"]
    assert len(drive.machine.host.jobs) == 0
    drive.check()


@pytest.mark.parametrize("cause", ["signal SIGKILL", "signal SIGTERM"])
def test_a_kill_from_outside_accuses_nobody(cause: str) -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    for _ in range(5):
        drive.die("CPU-0", cause, named=["a"], steps=1)
        again(drive, "a")
    drive.finish("a")
    assert set(codes(drive, "a")) == {"worker_died"}


def test_jobs_that_shared_two_fatal_batches_run_alone_until_they_have_shown_that_they_compute() -> None:
    drive = Drive(models=[profile("m", parallel=4)]).start().connect()
    names = ["good", "bad"]
    drive.submit(*(job(n) for n in names))
    for _ in range(2):
        drive.die("CPU-0", "signal SIGSEGV", named=names, steps=3)
        for name in names:
            again(drive, name)
    drive.submit(job("new"))
    assert set(drive.tasks) == {"good"}
    drive.worker_says("CPU-0", Pulse(steps=1, phase="prefill"))
    drive.worker_says("CPU-0", Pulse(steps=5, phase="decode"))
    assert set(drive.tasks) == {"good"}
    drive.worker_says("CPU-0", Pulse(steps=5 + TRIAL_STEPS, phase="decode"))
    assert set(drive.tasks) == {"good", "bad"}, "the second one's turn, and still no new job's"
    drive.die("CPU-0", "signal SIGSEGV", named=["good", "bad"], steps=1)
    assert codes(drive, "bad")[-1] == Code.POISONED_REQUEST
    assert codes(drive, "good")[-1] == Code.WORKER_DIED
    assert set(drive.tasks) == {"new"}
    drive.finish("new")
    assert codes(drive, "new") == []
    drive.check()


def test_a_job_on_trial_is_aborted_like_any_other_and_the_device_is_open_again() -> None:
    drive = Drive(models=[profile("a"), profile("b")]).start().connect()
    drive.submit(job("suspect", model="a", shared=2), job("other", model="b"))
    assert set(drive.tasks) == {"suspect"}
    drive.finish("suspect")
    assert set(drive.tasks) == {"other"}
    drive.finish("other")
    drive.check()


def test_models_come_back_pinned_first_then_by_class_preload_and_last_use() -> None:
    models = [
        profile("old", vram_mb=100), profile("recent", vram_mb=100), profile("preloaded", vram_mb=100),
        profile("high", vram_mb=100, residency_priority=200), profile("pinned", vram_mb=100, pinned_on=["test"]),
    ]  # fmt: skip
    drive = Drive(models=models, settings=NeuronSettings(name="test", preload=["preloaded"])).start().connect()
    for name in ("old", "recent", "high", "pinned"):
        drive.pass_time(1.0)
        drive.submit(job(f"job-{name}", model=name))
        drive.finish(f"job-{name}")
    loads = len(drive.sent)
    drive.die("CPU-0", steps=1)
    order = [m.model for _, m in drive.sent[loads:] if type(m).__name__ == "LoadModel"]  # type: ignore[union-attr]
    assert order == ["pinned", "high", "preloaded", "recent", "old"]


def test_a_quarantined_devices_models_move_to_one_that_has_room() -> None:
    settings = NeuronSettings(name="test", restart=RestartSettings(quarantine_after=1))
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")], settings=settings).start().connect()
    drive.submit(job("a"))
    device = drive.tasks["a"][0]
    other = next(d for d in ("CPU-0", "CPU-1") if d != device)
    drive.finish("a")
    drive.die(device, "signal SIGSEGV")
    assert drive.machine.host.models["m"].replicas.keys() == {other}
    assert drive.machine.host.models["m"].status == "loaded"
    assert not told(drive).displaced


def told(drive: Drive) -> ModelState:
    """Return what gateways were told last of the model."""
    drive.pass_time(0.2)
    return [m for s in drive.told_of(NodeState) for m in s.models if m.id == "m"][-1]


def test_a_model_that_no_device_here_takes_is_told_as_displaced_until_its_own_is_back() -> None:
    settings = NeuronSettings(name="test", restart=RestartSettings(quarantine_after=1, cool_down_s=60.0))
    drive = Drive(settings=settings).start().connect()
    drive.submit(job("a"))
    drive.finish("a")
    assert not told(drive).displaced
    drive.die("CPU-0", "signal SIGSEGV")
    assert told(drive).displaced
    drive.pass_time(61.0)
    assert (told(drive).displaced, told(drive).status) == (False, "loaded")


@pytest.mark.parametrize("order", [Unload(request="r", model="m"), Drain(request="r", scope="device", target="CPU-0")])
def test_what_an_admin_wants_gone_is_not_displaced(order: Unload | Drain) -> None:
    settings = NeuronSettings(name="test", restart=RestartSettings(quarantine_after=1, cool_down_s=60.0))
    drive = Drive(settings=settings).start().connect()
    drive.submit(job("a"))
    drive.finish("a")
    drive.die("CPU-0", "signal SIGSEGV")
    drive.peer_says(order)
    assert not told(drive).displaced
    drive.pass_time(61.0)
    assert not drive.machine.host.models["m"].replicas
