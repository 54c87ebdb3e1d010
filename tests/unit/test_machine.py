"""The supervisor's decisions, scenario by scenario, without a process or a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Code
from common.messages import (
    Abort,
    AbortTasks,
    Beat,
    Claim,
    Claimed,
    Done,
    Drain,
    Failed,
    FailedItem,
    Hello,
    HelloWanted,
    Inspect,
    InspectFailed,
    JobKey,
    LaneLoad,
    Load,
    Loaded,
    LoadFailed,
    LoadModel,
    Memory,
    MemoryReply,
    MemoryView,
    Models,
    ModelsReply,
    NodeState,
    Pin,
    Prepare,
    Pulse,
    Refused,
    RestartWorker,
    Run,
    Started,
    Status,
    StatusReply,
    Submit,
    Undrain,
    Unload,
    UnloadModel,
    Unpin,
    WorkerMemory,
)
from neuron.discovery import Device
from neuron.settings import NeuronSettings, RestartSettings
from neuron.supervisor import events
from tests.support.drive import Drive, cpu, job, profile


def two_devices(**settings: object) -> Drive:
    models = [profile("a"), profile("b")]
    devices = [cpu("CPU-0", 400), cpu("CPU-1", 400)]
    return Drive(devices=devices, models=models, settings=NeuronSettings(name="test", **settings)).start().connect()  # type: ignore[arg-type]


def test_a_start_spawns_a_worker_a_device_and_prep_but_no_probe_without_gpus() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")]).start()
    assert sorted((s.role, s.name) for s in drive.alive.values()) == [
        ("prep", "prep"), ("worker", "CPU-0"), ("worker", "CPU-1"),
    ]  # fmt: skip


def test_a_job_goes_from_submit_to_its_one_end() -> None:
    drive = Drive().start().connect()
    drive.submit(job("j"))
    assert [type(m) for m in drive.told["gw"] if not isinstance(m, NodeState)] == [Started]
    drive.check()
    drive.finish("j")
    assert drive.ends() == {"j": "ended"}
    assert len(drive.machine.host.jobs) == 0
    drive.check()


def test_a_request_is_prepared_before_anything_is_loaded_for_it() -> None:
    drive = Drive().start().connect()
    drive.holding_back = {Prepare}
    drive.submit(job("j"))
    assert drive.sent_to("CPU-0", LoadModel) == []
    refusal = FailedItem(job="j", attempt=1, code=Code.CONTEXT_LENGTH_EXCEEDED, message="too long")
    drive.prep_says(Failed(items=[refusal]))
    assert drive.ends() == {"j": "context_length_exceeded"}
    assert drive.sent_to("CPU-0", LoadModel) == []


def test_preloaded_models_are_loaded_without_a_request() -> None:
    drive = Drive(settings=NeuronSettings(name="test", preload=["m"])).start()
    assert [m.model for m in drive.sent_to("CPU-0", LoadModel)] == ["m"]
    assert drive.machine.host.models["m"].status == "loaded"


def test_never_more_jobs_run_than_there_are_slots() -> None:
    drive = Drive(models=[profile("m", parallel=2)]).start().connect()
    drive.submit(*(job(n) for n in "abcde"))
    assert set(drive.tasks) == {"a", "b"}
    drive.finish("a")
    assert set(drive.tasks) == {"b", "c"}
    drive.check()


def test_a_dead_worker_fails_its_running_jobs_and_keeps_the_queued_ones() -> None:
    drive = Drive(models=[profile("m", parallel=1)]).start().connect()
    drive.submit(job("a"), job("b"))
    before = drive.incarnation("CPU-0")
    drive.die("CPU-0")
    assert drive.incarnation("CPU-0") != before
    assert drive.ends() == {"a": "worker_died"}
    [failed] = drive.told_of(Failed)
    assert failed.items[0].retriable
    assert len(drive.sent_to("CPU-0", LoadModel)) == 2
    assert set(drive.tasks) == {"b"}
    drive.check()


def test_what_a_dead_incarnation_still_says_is_dropped() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    old, (_, task) = drive.incarnation("CPU-0"), drive.tasks["a"]
    drive.die("CPU-0")
    told = len(drive.told["gw"])
    drive.feed(events.WorkerSaid(old, "gw", Started(items=[task.started])))
    drive.feed(events.ChildExited(old, "signal SIGKILL"))
    assert len(drive.told["gw"]) == told
    assert drive.machine.host.workers["CPU-0"].restarts == 1


def test_a_death_on_one_device_leaves_the_other_alone() -> None:
    drive = two_devices()
    drive.submit(job("a", "a"), job("b", "b"))
    assert {d for d, _ in drive.tasks.values()} == {"CPU-0", "CPU-1"}
    device_of_a, other = drive.tasks["a"][0], drive.incarnation(drive.tasks["b"][0])
    drive.die(device_of_a)
    assert drive.ends() == {"a": "worker_died"}
    assert drive.incarnation(drive.tasks["b"][0]) == other
    drive.finish("b")
    assert drive.ends()["b"] == "ended"


@pytest.mark.parametrize("held", [Inspect, Prepare, LoadModel, Run])
def test_an_abort_takes_effect_at_once_in_every_state(held: type) -> None:
    drive = Drive()
    drive.holding_back = {held}
    drive.start().connect()
    drive.submit(job("j"))
    drive.peer_says(Abort(jobs=[JobKey("j", 1)]))
    drive.peer_says(Abort(jobs=[JobKey("j", 1)]))
    assert len(drive.machine.host.jobs) == 0
    assert bool(drive.sent_to("CPU-0", AbortTasks)) == (held is Run)
    assert drive.ends() == {}
    drive.check()


def test_an_aborted_slot_goes_to_the_next_job_behind_the_abort() -> None:
    drive = Drive(models=[profile("m", parallel=1)]).start().connect()
    drive.submit(job("a"), job("b"))
    drive.peer_says(Abort(jobs=[JobKey("a", 1)]))
    kinds = [type(m) for n, m in drive.sent if n == "CPU-0"]
    assert kinds[-2:] == [AbortTasks, Run]


def test_a_beat_settles_what_either_side_has_lost() -> None:
    drive = Drive().start().connect()
    drive.submit(job("mine"))
    drive.peer_says(Beat(incarnation="gw", jobs=[JobKey("unknown", 3)]))
    assert drive.ends() == {"unknown": "job_lost"}
    assert len(drive.machine.host.jobs) == 0


def test_a_silent_gateway_has_its_jobs_aborted() -> None:
    drive = Drive().start().connect()
    drive.submit(job("j"))
    drive.pass_time(4.5, beats=False)
    assert len(drive.machine.host.jobs) == 1
    drive.pass_time(1.0, beats=False)
    assert len(drive.machine.host.jobs) == 0
    drive.submit(job("late"))
    assert drive.told_of(HelloWanted)


def test_a_lost_gateway_has_its_jobs_aborted_at_once() -> None:
    drive = Drive().start().connect()
    drive.submit(job("j"))
    drive.feed(events.PeerLost("gw", "disconnected"))
    assert len(drive.sent_to("CPU-0", AbortTasks)) == 1
    assert len(drive.machine.host.jobs) == 0


def test_a_higher_attempt_replaces_the_older_one_and_an_equal_one_is_ignored() -> None:
    drive = Drive().start().connect()
    drive.submit(job("j"))
    drive.submit(job("j"))
    assert len(drive.sent_to("CPU-0", Run)) == 1
    drive.submit(job("j", attempt=2))
    assert len(drive.sent_to("CPU-0", AbortTasks)) == 1
    assert drive.tasks["j"][1].attempt == 2
    drive.check()


def test_an_unknown_model_is_refused_by_name() -> None:
    drive = Drive().start().connect()
    drive.submit(job("j", "nope"))
    assert drive.ends() == {"j": "model_not_found"}


def test_a_full_queue_answers_busy_with_a_wait() -> None:
    drive = (
        Drive(models=[profile("m", parallel=1)], settings=NeuronSettings(name="test", queue_limit=2)).start().connect()
    )
    for name in "abcd":
        drive.submit(job(name))
    assert drive.ends() == {"d": "busy"}
    [failed] = drive.told_of(Failed)
    assert failed.items[0].retriable
    assert (failed.items[0].retry_after_ms or 0) >= 1000


def test_a_budget_that_runs_out_before_the_start_ends_the_job() -> None:
    drive = Drive()
    drive.holding_back = {LoadModel}
    drive.start().connect()
    drive.submit(job("j", budget_ms=2000))
    drive.pass_time(1.9)
    assert drive.ends() == {}
    drive.pass_time(0.5)
    assert drive.ends() == {"j": "deadline_exceeded"}


def test_a_file_that_cannot_be_served_fails_its_jobs_and_is_looked_at_again_later() -> None:
    drive = Drive()
    drive.holding_back = {Inspect}
    drive.start().connect()
    drive.submit(job("a"))
    [asked] = drive.sent_to("prep", Inspect)
    drive.prep_says(InspectFailed(model="m", message="it is truncated", number=asked.number))
    drive.submit(job("b"))
    assert drive.ends() == {"a": "model_loading_failed", "b": "model_loading_failed"}
    drive.holding_back = set()
    drive.pass_time(3.0)
    drive.submit(job("c"))
    assert set(drive.tasks) == {"c"}


def test_a_failed_load_ends_the_waiting_jobs_with_the_reason_and_frees_the_memory() -> None:
    drive = Drive()
    drive.holding_back = {LoadModel}
    drive.start().connect()
    drive.submit(job("a"))
    drive.worker_says("CPU-0", LoadFailed(model="m", code=Code.MODEL_LOADING_FAILED, message="out of memory"))
    [failed] = drive.told_of(Failed)
    assert "out of memory" in failed.items[0].message
    assert drive.machine.host.ledger.reserved_mb("CPU-0") == 0
    drive.check()


def test_a_model_without_room_is_refused_with_the_numbers() -> None:
    drive = Drive(devices=[cpu("CPU-0", 400)], models=[profile("a"), profile("b")]).start().connect()
    drive.peer_says(Pin(request="p", model="a"))
    drive.submit(job("a", "a"))
    drive.submit(job("b", "b"))
    assert drive.ends() == {"b": "no_capacity"}
    assert "300 MiB" in drive.told_of(Failed)[0].items[0].message
    drive.check()


def test_a_load_is_answered_when_the_model_is_loaded() -> None:
    drive = Drive()
    drive.holding_back = {LoadModel}
    drive.start().connect("admin", "admin")
    drive.peer_says(Load(request="r", model="m"), "admin")
    assert drive.told_of(Done, "admin") == []
    drive.worker_says("CPU-0", drive.loaded("m"))
    assert [d.request for d in drive.told_of(Done, "admin")] == ["r"]
    drive.peer_says(Load(request="again", model="m"), "admin")
    assert [d.request for d in drive.told_of(Done, "admin")] == ["r", "again"]


def test_a_model_can_be_loaded_on_a_second_device_and_jobs_spread() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")]).start().connect()
    drive.peer_says(Load(request="1", model="m", device="CPU-0"))
    drive.peer_says(Load(request="2", model="m", device="CPU-1"))
    drive.submit(job("a"), job("b"))
    assert {d for d, _ in drive.tasks.values()} == {"CPU-0", "CPU-1"}


def test_a_load_on_a_device_that_does_not_exist_names_those_that_do() -> None:
    drive = Drive().start().connect("admin", "admin")
    drive.peer_says(Load(request="r", model="m", device="GPU-9"), "admin")
    [refused] = drive.told_of(Refused, "admin")
    assert "CPU-0" in refused.message


def test_an_unload_waits_for_the_jobs_it_found_and_serves_later_ones_afterwards() -> None:
    drive = Drive(models=[profile("m", parallel=1)]).start().connect()
    drive.submit(job("running"), job("queued"))
    drive.peer_says(Unload(request="u", model="m"))
    drive.submit(job("later"))
    drive.finish("running")
    assert drive.sent_to("CPU-0", UnloadModel) == []
    drive.finish("queued")
    assert len(drive.sent_to("CPU-0", UnloadModel)) == 1
    assert [d.request for d in drive.told_of(Done)] == ["u"]
    assert set(drive.tasks) == {"later"}
    assert len(drive.sent_to("CPU-0", LoadModel)) == 2
    drive.check()


def test_an_unload_of_one_replica_moves_its_work_to_the_other() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")]).start().connect()
    for device in ("CPU-0", "CPU-1"):
        drive.peer_says(Load(request=device, model="m", device=device))
    drive.peer_says(Unload(request="u", model="m", device="CPU-0"))
    drive.submit(*(job(n) for n in "abc"))
    assert {d for d, _ in drive.tasks.values()} == {"CPU-1"}
    assert "u" in [d.request for d in drive.told_of(Done)]


def test_a_drained_model_takes_no_new_jobs_until_the_undrain() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.peer_says(Drain(request="d", scope="model", target="m"))
    drive.submit(job("b"))
    assert drive.ends() == {"b": "model_unloaded"}
    drive.finish("a")
    assert [d.request for d in drive.told_of(Done)] == ["d"]
    drive.peer_says(Undrain(request="u", scope="model", target="m"))
    drive.submit(job("c"))
    assert set(drive.tasks) == {"c"}


def test_a_drained_device_ends_its_worker_and_gets_its_models_back_with_the_undrain() -> None:
    drive = two_devices()
    drive.submit(job("a", "a"))
    device = drive.tasks["a"][0]
    drive.peer_says(Drain(request="d", scope="device", target=device))
    assert drive.told_of(Done) == []
    drive.finish("a")
    assert [d.request for d in drive.told_of(Done)] == ["d"]
    assert device not in [s.name for s in drive.alive.values()]
    assert drive.machine.host.ledger.reserved_mb(device) == 0
    drive.peer_says(Undrain(request="u", scope="device", target=device))
    assert drive.machine.host.models["a"].replicas[device].status == "loaded"
    drive.check()


def test_who_waits_for_a_drain_is_told_when_it_is_called_off() -> None:
    drive = two_devices()
    drive.submit(job("a", "a"))
    device = drive.tasks["a"][0]
    drive.peer_says(Drain(request="d", scope="device", target=device))
    drive.peer_says(Undrain(request="u", scope="device", target=device))
    drive.peer_says(Drain(request="n", scope="node"))
    drive.peer_says(Undrain(request="v", scope="node"))
    assert [(r.request, r.code.value) for r in drive.told_of(Refused)] == [("d", "aborted"), ("n", "aborted")]
    assert [d.request for d in drive.told_of(Done)] == ["u", "v"]
    drive.finish("a")
    assert drive.ends() == {"a": "ended"}


def test_queued_jobs_of_a_drained_device_move_to_another() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")], models=[profile("m", parallel=1)]).start().connect()
    drive.submit(job("a"), job("b"))
    device = drive.tasks["a"][0]
    drive.peer_says(Drain(request="d", scope="device", target=device))
    drive.finish("a")
    assert "b" in drive.tasks
    assert drive.tasks["b"][0] != device


def test_a_node_drain_refuses_new_work_and_is_answered_when_empty() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.peer_says(Drain(request="d", scope="node"))
    drive.submit(job("b"))
    assert drive.ends() == {"b": "shutting_down"}
    drive.finish("a")
    assert [d.request for d in drive.told_of(Done)] == ["d"]
    drive.peer_says(Undrain(request="u", scope="node"))
    drive.submit(job("c"))
    assert set(drive.tasks) == {"c"}


def test_a_restart_gives_the_device_a_new_worker_and_its_models() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    before = drive.incarnation("CPU-0")
    drive.peer_says(RestartWorker(request="r", device="CPU-0"))
    assert drive.incarnation("CPU-0") != before
    assert [d.request for d in drive.told_of(Done)] == ["r"]
    assert drive.ends() == {"a": "worker_died"}
    assert drive.machine.host.workers["CPU-0"].restarts == 0
    assert drive.machine.host.models["m"].status == "loaded"


def test_a_stop_lets_running_jobs_finish_then_ends_every_child() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.feed(events.StopAsked())
    assert drive.exits == []
    drive.finish("a")
    assert drive.exits[0] == 0
    assert drive.alive == {}
    assert drive.ends() == {"a": "ended"}


def test_a_stop_fails_what_outlives_the_drain() -> None:
    drive = (
        Drive(settings=NeuronSettings(name="test", drain_s=5.0), models=[profile("m", parallel=1)]).start().connect()
    )
    drive.submit(job("a"), job("b"))
    drive.feed(events.StopAsked())
    drive.pass_time(6.0)
    assert drive.ends() == {"a": "shutting_down", "b": "shutting_down"}
    assert drive.exits[0] == 0


def test_a_second_stop_ends_everything_at_once() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.feed(events.StopAsked())
    drive.feed(events.StopAsked())
    assert drive.exits[0] == 0
    assert drive.ends() == {"a": "shutting_down"}


def test_jobs_of_a_dead_prep_are_prepared_again_by_the_next() -> None:
    drive = Drive()
    drive.holding_back = {Prepare}
    drive.start().connect()
    drive.submit(job("a"))
    drive.holding_back = set()
    drive.die("prep")
    assert set(drive.tasks) == {"a"}


def test_a_job_that_kills_prep_twice_is_refused_and_the_others_go_on() -> None:
    drive = Drive()
    drive.holding_back = {Prepare}
    drive.start().connect()
    drive.submit(job("bad"), job("good"))
    drive.die("prep")
    drive.die("prep")
    assert drive.ends() == {"bad": "template_failed"}
    drive.pass_time(1.0)
    assert len(drive.machine.host.jobs) == 1


def test_a_prep_that_owes_an_answer_for_too_long_is_killed() -> None:
    drive = Drive()
    drive.holding_back = {Prepare}
    drive.start().connect()
    drive.submit(job("a"))
    before = drive.incarnation("prep")
    drive.pass_time(11.0)
    assert drive.incarnation("prep") != before


def test_a_worker_whose_loop_stands_still_is_killed_and_replaced() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.worker_says(
        "CPU-0", Pulse(steps=3, phase="decode", tokens=7, lanes=[LaneLoad(model="m", sequences=1, kv_used=40)])
    )
    drive.pass_time(1.0)
    pushed = drive.told_of(NodeState)[-1]
    assert (pushed.devices[0].tokens, pushed.devices[0].hangs) == (7, 0)
    before = drive.incarnation("CPU-0")
    for _ in range(61):
        drive.machine.host.peers.hear("gw", drive.now)
        drive.pass_time(1.0, beats=False)
    assert drive.incarnation("CPU-0") != before
    assert drive.machine.host.workers["CPU-0"].hangs == 1
    assert drive.ends() == {"a": "worker_died"}


def test_a_crash_loop_quarantines_the_device_and_fails_what_waits_for_it() -> None:
    settings = NeuronSettings(name="test", restart=RestartSettings(quarantine_after=2, cool_down_s=60.0))
    drive = Drive(settings=settings)
    drive.holding_back = {LoadModel}
    drive.start().connect()
    drive.submit(job("a"))
    drive.die("CPU-0")
    drive.die("CPU-0")
    assert drive.ends() == {"a": "device_unavailable"}
    drive.holding_back = set()
    drive.pass_time(61.0)
    assert drive.machine.host.models["m"].status == "loaded"


def test_a_gpu_worker_without_its_gpu_never_serves_and_the_reason_is_shown() -> None:
    gpu = Device(uuid="GPU-1", name="RTX", kind="cuda", memory_mb=24000, visible="GPU-1")
    drive = Drive(devices=[gpu])
    drive.sees_gpus = False
    drive.start().connect()
    state = drive.told_of(NodeState)[-1]
    assert state.devices[0].state == "unavailable"
    assert state.devices[0].reason
    drive.submit(job("a"))
    assert drive.ends() == {"a": "device_unavailable"}
    assert drive.sent_to("GPU-1", LoadModel) == []


def test_a_hello_of_another_major_version_is_refused_by_name() -> None:
    drive = Drive().start()
    drive.peer_says(Hello(version=(9, 1), incarnation="gw", role="gateway", name="old"))
    [refused] = drive.told_of(Refused)
    assert "9.1" in refused.message
    assert "old" in refused.message
    assert drive.told_of(NodeState) == []


def test_a_peer_cannot_speak_under_another_routing_id() -> None:
    drive = Drive().start()
    drive.peer_says(Hello(version=(1, 0), incarnation="someone", role="gateway"))
    assert drive.told_of(Refused)


def test_pushed_states_follow_each_other_without_a_gap_and_say_what_changed() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.pass_time(1.0)
    drive.finish("a")
    drive.pass_time(1.0)
    states = drive.told_of(NodeState)
    assert states[0].full
    assert [s.seq for s in states] == list(range(states[0].seq, states[0].seq + len(states)))
    running = [m.running for s in states for m in s.models]
    assert 1 in running
    assert running[-1] == 0


def test_a_claim_is_answered_with_the_first_on_record() -> None:
    drive = Drive().start().connect()
    drive.peer_says(Claim(request="1", model="x", choice="beast"))
    drive.peer_says(Claim(request="2", model="x", choice="benjy"))
    assert [c.choice for c in drive.told_of(Claimed)] == ["beast", "beast"]


def test_jobs_may_bring_the_profile_of_a_model_that_is_not_known_here() -> None:
    drive = two_devices()
    drive.peer_says(Submit(jobs=[job("x", model="new")], profile=profile("new")))
    assert not drive.told_of(Failed)
    drive.peer_says(Models(request="1"))
    assert [m.id for m in drive.told_of(ModelsReply)[-1].models] == ["a", "b", "new"]


def test_a_pin_is_told_until_it_ends_and_asking_twice_changes_nothing() -> None:
    drive = two_devices()
    for ask, pinned in ((Pin, True), (Pin, True), (Unpin, False), (Unpin, False)):
        drive.peer_says(ask(request="1", model="a"))
        drive.peer_says(Models(request="2"))
        assert drive.told_of(ModelsReply)[-1].models[0].pinned is pinned
    assert len(drive.told_of(Done)) == 4
    drive.peer_says(Pin(request="3", model="nobody"))
    assert drive.told_of(Refused)[-1].code is Code.MODEL_NOT_FOUND


def test_status_lists_jobs_and_states() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.peer_says(Status(request="s"))
    [reply] = drive.told_of(StatusReply)
    assert [(r.job, r.state, r.device) for r in reply.jobs] == [("a", "running", "CPU-0")]
    assert reply.state.full


def test_a_question_to_all_workers_is_answered_also_when_one_is_silent() -> None:
    drive = two_devices()
    drive.peer_says(Memory(request="q"))
    token = drive.sent[-1][1].request  # type: ignore[union-attr]
    view = WorkerMemory(device="CPU-0", process_mb=100)
    drive.worker_says("CPU-0", MemoryView(request=token, memory=view))
    assert drive.told_of(MemoryReply) == []
    drive.pass_time(2.5)
    [reply] = drive.told_of(MemoryReply)
    assert [w.device for w in reply.workers] == ["CPU-0"]


def test_messages_of_a_live_worker_that_fit_nothing_change_nothing() -> None:
    drive = Drive().start().connect()
    drive.worker_says("CPU-0", Loaded(model="never asked", memory_mb=1, context=1, kv_tokens=1, parallel=1))
    drive.worker_says("CPU-0", LoadFailed(model="never asked", code=Code.INTERNAL_ERROR, message="?"))
    assert drive.ends() == {}
    drive.check()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("ab"), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("abort"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("die"), st.sampled_from(["CPU-0", "CPU-1", "prep"]), st.just(0)),
        st.tuples(st.just("unload"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("load"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("drain"), st.sampled_from(["CPU-0", "CPU-1"]), st.just(0)),
        st.tuples(st.just("undrain"), st.sampled_from(["CPU-0", "CPU-1"]), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 5)),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_every_job_ends_once_and_the_books_balance(script: list[tuple[str, str, int]]) -> None:
    drive = two_devices()
    submitted: set[str] = set()
    aborted: set[str] = set()
    for serial, (what, name, number) in enumerate(script):
        if what == "submit":
            submitted.add(f"j{serial}")
            drive.submit(job(f"j{serial}", name))
        elif what == "finish" and drive.tasks:
            drive.finish(sorted(drive.tasks)[number % len(drive.tasks)])
        elif what == "abort" and len(drive.machine.host.jobs):
            entries = drive.machine.host.jobs.entries()
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
        elif what == "drain":
            drive.peer_says(Drain(request=f"r{serial}", scope="device", target=name))
        elif what == "undrain":
            drive.peer_says(Undrain(request=f"r{serial}", scope="device", target=name))
        elif what == "wait":
            drive.pass_time(float(number))
        drive.check()
    for device in ("CPU-0", "CPU-1"):
        drive.peer_says(Undrain(request="end", scope="device", target=device))
    for _ in range(200):
        drive.pass_time(1.0)
        if drive.tasks:
            drive.finish(min(drive.tasks))
        drive.check()
    assert len(drive.machine.host.jobs) == 0
    ends = drive.ends()
    assert set(ends) <= submitted
    assert submitted - aborted <= set(ends)
    asked = {f"r{i}" for i, (what, *_) in enumerate(script) if what in ("load", "unload", "undrain")}
    answered = [m.request for m in drive.told["gw"] if isinstance(m, Done | Refused) and m.request in asked]
    assert sorted(answered) == sorted(asked)


def test_a_supervisor_that_stood_still_holds_the_silence_against_nobody() -> None:
    drive = Drive().start().connect()
    drive.submit(job("a"))
    drive.worker_says("CPU-0", Pulse(steps=3, phase="decode"))
    drive.pass_time(1.0)
    before = drive.incarnation("CPU-0")
    drive.now += 90.0  # longer than every limit and every lease
    drive.feed(events.TimerFired("sweep"))
    assert drive.incarnation("CPU-0") == before
    assert len(drive.machine.host.jobs) == 1
    drive.finish("a")
    assert drive.ends() == {"a": "ended"}
    drive.submit(job("b"))
    drive.pass_time(6.0, beats=False)
    assert len(drive.machine.host.jobs) == 0, "a gateway's own silence still counts"
