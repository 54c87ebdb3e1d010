"""How the supervisor makes room, scenario by scenario."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from common.errors import Code
from common.messages import (
    Abort,
    Done,
    Eviction,
    Failed,
    Hello,
    JobKey,
    Load,
    LoadFailed,
    LoadModel,
    NodeState,
    Pin,
    Refused,
    Unload,
    Unloaded,
    UnloadModel,
)
from neuron.discovery import Device
from neuron.settings import EvictionSettings, NeuronSettings
from tests.support.drive import Drive, cpu, job, profile


def one_place(models: str = "abc", *, settings: NeuronSettings | None = None) -> Drive:
    """A device with room for one of several models."""
    drive = Drive(devices=[cpu("CPU-0", 400)], models=[profile(m) for m in models], settings=settings)
    return drive.start().connect()


def resident(drive: Drive) -> set[str]:
    return {m.id for m in drive.machine.host.models.values() if m.status == "loaded"}


def makes_room(drive: Drive) -> str | None:
    return drive.machine.host.models["a"].replicas["CPU-0"].makes_room_for


def run_one(drive: Drive, name: str, model: str) -> None:
    drive.submit(job(name, model))
    drive.finish(name)
    drive.check()


def test_an_idle_model_makes_room_and_the_request_is_served() -> None:
    drive = one_place()
    run_one(drive, "1", "a")
    run_one(drive, "2", "b")
    assert drive.ends() == {"1": "ended", "2": "ended"}
    assert resident(drive) == {"b"}
    assert "made room for b" in (drive.machine.host.models["a"].unloaded_because or "")
    drive.peer_says(Unload(request="u", model="b"))
    drive.pass_time(1.0)
    assert drive.told_of(NodeState)[-1].evictions == {"room": 1, "admin": 1}


def test_a_busy_model_ends_its_jobs_before_it_goes_and_its_queue_waits_for_its_return() -> None:
    drive = one_place()
    run_one(drive, "0", "a")
    drive.submit(job("running", "a"))
    drive.pass_time(1.0)
    drive.submit(job("b", "b"), job("queued", "a"))
    assert set(drive.tasks) == {"running"}
    assert drive.sent_to("CPU-0", UnloadModel) == []
    drive.finish("running")
    assert set(drive.tasks) == {"b"}
    drive.finish("b")
    drive.pass_time(1.0)
    assert set(drive.tasks) == {"queued"}
    drive.finish("queued")
    assert set(drive.ends().values()) == {"ended"}
    drive.check()


def test_a_model_that_has_not_served_yet_is_not_evicted() -> None:
    drive = one_place()
    drive.submit(job("a", "a"))
    drive.submit(job("b", "b"))
    drive.pass_time(5.0)
    assert resident(drive) == {"a"}
    assert not drive.machine.host.models["a"].replicas["CPU-0"].leaving
    drive.finish("a")
    assert resident(drive) == {"b"}


def test_a_model_that_is_loading_is_not_evicted() -> None:
    drive = one_place()
    drive.holding_back = {LoadModel}
    drive.submit(job("a", "a"))
    drive.submit(job("b", "b"))
    drive.pass_time(5.0)
    assert drive.sent_to("CPU-0", UnloadModel) == []
    assert drive.ends() == {}


def test_a_loaded_model_that_nobody_came_for_may_go_after_a_while() -> None:
    drive = one_place()
    drive.peer_says(Load(request="r", model="a"))
    drive.submit(job("b", "b"))
    assert resident(drive) == {"a"}
    drive.pass_time(11.0)
    assert resident(drive) == {"b"}


def test_a_higher_class_and_a_pinned_model_stay() -> None:
    models = [profile("a", residency_priority=200), profile("b"), profile("c", residency_priority=200)]
    drive = Drive(devices=[cpu("CPU-0", 400)], models=models).start().connect()
    run_one(drive, "1", "a")
    drive.submit(job("2", "b"))
    assert drive.ends()["2"] == "no_capacity"
    drive.peer_says(Pin(request="p", model="a"))
    drive.submit(job("3", "c"))
    assert drive.ends()["3"] == "no_capacity"
    assert resident(drive) == {"a"}


def test_equal_classes_make_room_for_each_other_both_ways() -> None:
    drive = one_place("ab")
    for serial, model in enumerate("abab"):
        run_one(drive, str(serial), model)
        assert resident(drive) == {model}


def test_a_plan_is_dropped_and_its_victim_stays_when_the_last_waiter_is_gone() -> None:
    drive = one_place()
    run_one(drive, "0", "a")
    drive.submit(job("running", "a"))
    drive.pass_time(1.0)
    drive.submit(job("b", "b"), job("queued", "a"))
    assert makes_room(drive) == "b"
    drive.peer_says(Abort(jobs=[JobKey("b", 1)]))
    assert makes_room(drive) is None
    assert set(drive.tasks) == {"running", "queued"}
    assert drive.machine.host.wants == {}
    drive.check()


def test_waiting_for_a_busy_victim_ends_with_a_retry_after_and_the_victim_goes_on() -> None:
    drive = one_place(settings=NeuronSettings(name="test", swap_wait_s=5.0))
    run_one(drive, "0", "a")
    drive.submit(job("running", "a"))
    drive.pass_time(1.0)
    drive.submit(job("b", "b"))
    drive.pass_time(6.0)
    assert drive.ends()["b"] == "no_capacity"
    [item] = [i for m in drive.told_of(Failed) for i in m.items]
    assert item.retriable
    assert (item.retry_after_ms or 0) >= 1000
    drive.submit(job("next", "a"))
    assert set(drive.tasks) == {"running", "next"}
    drive.check()


def test_a_model_just_loaded_is_not_sent_back_within_its_own_load_time() -> None:
    drive = one_place("ab")
    drive.holding_back = {LoadModel}
    for serial in range(8):
        drive.submit(job(f"a{serial}", "a"), job(f"b{serial}", "b"))
    order: list[str] = []
    turns: list[float] = []
    loaded_at = drive.now
    for _ in range(200):
        model = next((m for m in drive.machine.host.models.values() if m.status == "loading"), None)
        if model is not None:
            order.append(model.id)
            drive.pass_time(2.0)
            drive.worker_says("CPU-0", drive.loaded(model.id))
            loaded_at = drive.now
        elif drive.tasks:
            unloads = len(drive.sent_to("CPU-0", UnloadModel))
            drive.finish(min(drive.tasks))
            if len(drive.sent_to("CPU-0", UnloadModel)) > unloads and drive.machine.host.jobs.waiting(order[-1]):
                turns.append(drive.now - loaded_at)
        drive.pass_time(0.5)
        drive.check()
    assert turns
    assert min(turns) >= 2.0
    assert len(drive.machine.host.jobs) == 0
    assert set(drive.ends().values()) == {"ended"}
    assert order[0] == "a"
    assert 2 <= len(order) <= 8
    assert all(one != other for one, other in itertools.pairwise(order))


def test_a_large_model_waits_for_several_and_small_ones_do_not_overtake_it() -> None:
    models = [profile("big", vram_mb=800), *(profile(m, vram_mb=350) for m in "abcd")]
    drive = Drive(devices=[cpu("CPU-0", 900)], models=models).start().connect()
    drive.submit(job("a", "a"), job("b", "b"))
    drive.submit(job("big", "big"), job("c", "c"), job("d", "d"))
    drive.finish("a")
    assert "c" not in drive.tasks
    drive.finish("b")
    assert set(drive.tasks) == {"big"}
    drive.finish("big")
    drive.pass_time(1.0)
    assert set(drive.tasks) == {"c", "d"}
    drive.check()


def test_a_load_waits_for_room_and_is_answered_once() -> None:
    drive = one_place().connect("admin", "admin")
    run_one(drive, "0", "a")
    drive.submit(job("running", "a"))
    drive.pass_time(1.0)
    drive.peer_says(Load(request="r", model="b"), "admin")
    drive.peer_says(Load(request="again", model="b"), "admin")
    assert drive.told_of(Done, "admin") == []
    drive.finish("running")
    assert sorted(d.request for d in drive.told_of(Done, "admin")) == ["again", "r"]
    assert resident(drive) == {"b"}


def test_a_load_that_may_not_evict_is_refused() -> None:
    drive = one_place()
    run_one(drive, "0", "a")
    drive.peer_says(Load(request="r", model="b", may_evict=False))
    assert [r.request for r in drive.told_of(Refused)] == ["r"]
    assert resident(drive) == {"a"}


def test_a_load_of_a_victim_brings_it_back_after_its_turn() -> None:
    drive = one_place("ab")
    run_one(drive, "0", "a")
    drive.submit(job("running", "a"))
    drive.pass_time(1.0)
    drive.submit(job("b", "b"))
    drive.peer_says(Load(request="r", model="a"))
    drive.finish("running")
    assert set(drive.tasks) == {"b"}
    drive.finish("b")
    drive.pass_time(1.0)
    assert [d.request for d in drive.told_of(Done)] == ["r"]
    assert resident(drive) == {"a"}
    drive.check()


def test_an_admins_unload_of_a_victim_is_obeyed_also_when_the_plan_is_dropped() -> None:
    drive = one_place("ab")
    run_one(drive, "0", "a")
    drive.submit(job("running", "a"))
    drive.pass_time(1.0)
    drive.submit(job("b", "b"))
    drive.peer_says(Unload(request="u", model="a"))
    drive.peer_says(Abort(jobs=[JobKey("b", 1)]))
    drive.finish("running")
    assert [d.request for d in drive.told_of(Done)] == ["u"]
    assert resident(drive) == set()


def test_room_is_made_elsewhere_when_the_device_is_lost_meanwhile() -> None:
    drive = Drive(devices=[cpu("CPU-0", 400), cpu("CPU-1", 400)], models=[profile(m) for m in "abc"]).start().connect()
    run_one(drive, "1", "a")
    drive.pass_time(1.0)
    run_one(drive, "2", "b")
    drive.pass_time(1.0)
    drive.submit(job("ra", "a"), job("rb", "b"))
    drive.submit(job("c", "c"))
    [want] = drive.machine.host.wants.values()
    (at,) = want.at
    drive.machine.host.pause(at, None)
    other = "CPU-1" if at == "CPU-0" else "CPU-0"
    drive.pass_time(0.5)
    assert want.at == (other,)
    drive.check()


def test_the_neurons_own_strategy_wins_over_the_gateways() -> None:
    models = [profile("low", residency_priority=50), profile("high"), profile("new")]
    for own, loser in ((None, "low"), ("lru", "high")):
        settings = NeuronSettings(name="test", eviction=EvictionSettings(strategy=own))  # type: ignore[arg-type]
        drive = Drive(devices=[cpu("CPU-0", 700)], models=models, settings=settings).start()
        drive.peer_says(Hello(version=(1, 0), incarnation="gw", role="gateway", eviction=Eviction(strategy="priority")))
        run_one(drive, "1", "high")
        drive.pass_time(1.0)
        run_one(drive, "2", "low")
        drive.pass_time(1.0)
        run_one(drive, "3", "new")
        assert loser not in resident(drive)


def test_a_measured_size_corrects_the_next_estimate() -> None:
    models = [profile("a", vram_mb=1)]
    drive = Drive(models=models).start().connect()
    drive.peer_says(Load(request="1", model="a"))
    estimated = drive.machine.host.models["a"].replicas["CPU-0"].plan.estimated_mb
    assert estimated != 250
    drive.peer_says(Unload(request="2", model="a"))
    drive.peer_says(Load(request="3", model="a"))
    assert drive.machine.host.models["a"].replicas["CPU-0"].plan.memory_mb == 250


def test_a_model_that_comes_back_after_a_death_does_not_count_its_error_twice() -> None:
    drive = Drive(models=[profile("a", vram_mb=1)]).start().connect()
    run_one(drive, "1", "a")
    for _ in range(3):
        drive.die("CPU-0")
        drive.pass_time(5.0)
    drive.peer_says(Unload(request="2", model="a"))
    drive.peer_says(Load(request="3", model="a"))
    assert drive.machine.host.models["a"].replicas["CPU-0"].plan.memory_mb == 250


def test_memory_that_an_unload_does_not_release_comes_back_with_a_new_worker_once_nobody_uses_the_old_one() -> None:
    models = [profile("a", vram_mb=1500), profile("b", vram_mb=1500), profile("c", vram_mb=500)]
    drive = Drive(devices=[cpu("CPU-0", 2100)], models=models).start().connect()
    run_one(drive, "1", "a")
    drive.submit(job("busy", "c"))
    first = drive.incarnation("CPU-0")
    drive.holding_back = {UnloadModel}
    drive.submit(job("2", "b"))
    drive.worker_says("CPU-0", Unloaded(model="a", kept_mb=600))
    drive.pass_time(3.0)
    assert drive.told_of(NodeState)[-1].devices[0].reserved_mb == 500 + 600
    assert (drive.incarnation("CPU-0"), set(drive.tasks), resident(drive)) == (first, {"busy"}, {"c"})
    drive.finish("busy")
    drive.pass_time(1.0)
    assert drive.incarnation("CPU-0") != first
    assert set(drive.tasks) == {"2"}
    drive.finish("2")
    assert resident(drive) == {"b", "c"}
    assert drive.machine.host.ledger.unreleased_mb("CPU-0") == 0
    assert drive.machine.host.workers["CPU-0"].restarts == 0
    drive.check()


def test_a_little_memory_that_a_driver_keeps_renews_no_worker() -> None:
    drive = Drive(devices=[cpu("CPU-0", 2000)], models=[profile("a", vram_mb=1500)]).start().connect()
    first = drive.incarnation("CPU-0")
    drive.holding_back = {UnloadModel}
    run_one(drive, "1", "a")
    drive.peer_says(Unload(request="u", model="a"))
    drive.worker_says("CPU-0", Unloaded(model="a", kept_mb=400))
    drive.pass_time(3.0)
    assert (drive.incarnation("CPU-0"), drive.machine.host.ledger.free_mb("CPU-0")) == (first, 2000)


def test_a_device_of_unknown_size_takes_models_until_a_load_finds_no_room() -> None:
    unknown = Device(uuid="CPU-0", name="?", kind="cpu", memory_mb=None, threads=1, visible="")
    drive = Drive(devices=[unknown], models=[profile(m, vram_mb=10**6) for m in "abc"]).start().connect()
    drive.submit(job("1", "a"), job("2", "b"))
    assert set(drive.tasks) == {"1", "2"}
    drive.holding_back = {LoadModel}
    drive.submit(job("3", "c"))
    for _ in range(2):  # the second time with a corrected estimate
        drive.worker_says("CPU-0", LoadFailed(model="c", code=Code.NO_CAPACITY, message="out of memory"))
    assert drive.ends() == {"3": "model_loading_failed"}
    assert resident(drive) == {"a", "b"}
    assert drive.sent_to("CPU-0", UnloadModel) == []
    drive.check()


def test_an_unload_that_overtakes_a_load_calls_it_off_and_is_answered_when_the_model_is_gone() -> None:
    drive = one_place().connect("admin", "admin")
    drive.holding_back = {LoadModel, UnloadModel}
    drive.peer_says(Load(request="l", model="a"), "admin")
    drive.peer_says(Unload(request="u", model="a"), "admin")
    assert [(r.request, r.code) for r in drive.told_of(Refused, "admin")] == [("l", Code.ABORTED)]
    drive.worker_says("CPU-0", drive.loaded("a"))
    assert drive.told_of(Done, "admin") == []
    drive.worker_says("CPU-0", Unloaded(model="a"))
    assert [d.text for d in drive.told_of(Done, "admin")] == ["a is unloaded from CPU-0"]
    drive.check()


def test_an_unload_of_a_model_whose_load_then_fails_is_done() -> None:
    drive = one_place()
    drive.holding_back = {LoadModel}
    drive.peer_says(Load(request="l", model="a"))
    drive.peer_says(Unload(request="u", model="a"))
    drive.worker_says("CPU-0", LoadFailed(model="a", code=Code.NO_CAPACITY, message="out of memory"))
    assert [d.request for d in drive.told_of(Done)] == ["u"]
    assert len(drive.sent_to("CPU-0", LoadModel)) == 1, "nobody wants it any more"
    drive.check()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abcde"), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("abort"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("die"), st.sampled_from(["CPU-0", "CPU-1"]), st.just(0)),
        st.tuples(st.just("unload"), st.sampled_from("abcde"), st.just(0)),
        st.tuples(st.just("load"), st.sampled_from("abcde"), st.just(0)),
        st.tuples(st.just("replace"), st.sampled_from("abcde"), st.integers(0, 1)),
        st.tuples(st.just("load-at"), st.sampled_from("abcde"), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 20)),
    ),
    max_size=40,
)
SIZES = {"a": 300, "b": 300, "c": 350, "d": 250, "e": 600}


@given(steps)
def test_memory_is_never_promised_twice_and_every_request_ends(script: list[tuple[str, str, int]]) -> None:
    models = [profile(m, vram_mb=size, parallel=1) for m, size in SIZES.items()]
    drive = Drive(devices=[cpu("CPU-0", 400), cpu("CPU-1", 700)], models=models).start().connect()
    submitted: set[str] = set()
    aborted: set[str] = set()
    for serial, (what, name, number) in enumerate(script):
        entries = drive.machine.host.jobs.entries()
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
        elif what == "unload":
            drive.peer_says(Unload(request=f"r{serial}", model=name))
        elif what == "load":
            drive.peer_says(Load(request=f"r{serial}", model=name))
        elif what == "replace":
            newer = profile(name, vram_mb=SIZES[name], parallel=1, ttl_s=1000.0 + serial) if number else None
            drive.peer_says(Load(request=f"r{serial}", model=name, profile=newer, replace=True))
        elif what == "load-at":
            drive.peer_says(Load(request=f"r{serial}", model=name, device=f"CPU-{number}"))
        elif what == "wait":
            drive.pass_time(float(number))
        drive.check()
    asked = {f"r{i}" for i, (what, *_) in enumerate(script) if what in ("load", "load-at", "replace", "unload")}

    def answered() -> list[str]:
        return [m.request for m in drive.told["gw"] if isinstance(m, Done | Refused) and m.request in asked]

    for _ in range(300):
        drive.pass_time(1.0)
        if drive.tasks:
            drive.finish(min(drive.tasks))
        drive.check()
        # A load may also wait for a worker that comes back only after a while, having died several times in a row.
        if not len(drive.machine.host.jobs) and not drive.machine.host.wants and len(answered()) >= len(asked):
            break
    assert len(drive.machine.host.jobs) == 0
    assert drive.machine.host.wants == {}
    ends = drive.ends()
    assert submitted - aborted <= set(ends) <= submitted
    assert {ends[j] for j in submitted - aborted} <= {"ended", "worker_died", "device_unavailable"}
    assert sorted(answered()) == sorted(asked)
