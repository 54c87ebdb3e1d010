"""A profile that changes while its model is loaded: told, shown, and put in force without cutting anybody short."""

from typing import Any

import pytest

from common.catalogue import Profile
from common.engine_options import EngineOptions
from common.messages import Done, Load, LoadModel, NodeState, Refused, ReplicaState, Submit, Unload, UnloadModel
from cortex.fleet import placement
from tests.support.drive import Drive, cpu, job, profile
from tests.support.fake_neuron import model_state
from tests.unit.test_view_listing import node

NEW = profile("m", parallel=3)


def loaded(**own: Any) -> Drive:
    """Return a machine that has `m` loaded, which a gateway knows."""
    drive = Drive(models=[profile("m", **own)] if own else []).start().connect().connect("ctl", "admin")
    drive.peer_says(Load(request="l", model="m", profile=profile("m")))
    return drive


def replicas(drive: Drive) -> list[ReplicaState]:
    drive.pass_time(0.1)
    state = drive.machine.published
    assert state is not None
    return next(m.replicas for m in state.models if m.id == "m")


def orders(drive: Drive) -> list[LoadModel | UnloadModel]:
    return [m for n, m in drive.sent if n == "CPU-0" and isinstance(m, LoadModel | UnloadModel)]


def test_a_changed_profile_marks_the_replica_and_leaves_it_as_it_is() -> None:
    drive = loaded()
    assert [r.outdated for r in replicas(drive)] == [False]
    drive.peer_says(Load(request="again", model="m", profile=NEW))
    assert drive.told_of(Done)[-1].text == "m is loaded on CPU-0"
    assert [r.outdated for r in replicas(drive)] == [True]
    assert drive.machine.host.models["m"].profile == profile("m")
    drive.peer_says(Load(request="back", model="m", profile=profile("m")))
    assert [r.outdated for r in replicas(drive)] == [False]
    assert len(orders(drive)) == 1
    drive.check()


def test_an_outdated_replica_is_replaced_when_it_was_idle_for_a_while() -> None:
    drive = loaded()
    drive.submit(job("j"))
    drive.peer_says(Load(request="again", model="m", profile=NEW))
    drive.pass_time(30)
    assert len(orders(drive)) == 1  # it still has a job
    drive.finish("j")
    drive.pass_time(5)
    assert len(orders(drive)) == 1
    drive.pass_time(6)
    assert [type(m) for m in orders(drive)] == [LoadModel, UnloadModel, LoadModel]
    assert drive.machine.host.models["m"].profile == NEW
    assert [r.outdated for r in replicas(drive)] == [False]
    drive.check()


def test_a_load_that_says_so_replaces_at_once_after_the_jobs_and_those_that_wait_go_on() -> None:
    drive = loaded()
    drive.submit(job("j"))
    drive.peer_says(Load(request="r", model="m", profile=NEW, replace=True), "ctl")
    drive.submit(job("later"))
    assert "later" not in drive.tasks
    drive.finish("j")
    assert [type(m) for m in orders(drive)] == [LoadModel, UnloadModel, LoadModel]
    assert drive.machine.host.models["m"].profile == NEW
    assert "later" in drive.tasks
    assert drive.told_of(Done, "ctl")[-1].request == "r"
    assert drive.told_of(Refused, "ctl") == []
    drive.check()


def test_a_worker_that_dies_before_it_has_unloaded_does_not_leave_the_load_unanswered() -> None:
    drive = loaded()
    drive.submit(job("j"))
    drive.peer_says(Load(request="r", model="m", profile=NEW, replace=True), "ctl")
    drive.submit(job("later"))
    drive.die("CPU-0")
    drive.pass_time(1)
    assert [d.request for d in drive.told_of(Done, "ctl")] == ["r"]
    assert drive.machine.host.models["m"].profile == NEW
    assert "later" in drive.tasks
    drive.check()


def test_an_outdated_model_that_is_unloaded_stays_so_and_comes_back_with_its_new_profile() -> None:
    drive = loaded()
    drive.peer_says(Load(request="again", model="m", profile=NEW))
    drive.peer_says(Unload(request="u", model="m"), "ctl")
    drive.pass_time(30)
    assert [type(m) for m in orders(drive)] == [LoadModel, UnloadModel]
    drive.submit(job("j"))
    assert drive.machine.host.models["m"].profile == NEW
    assert set(drive.tasks) == {"j"}
    drive.check()


@pytest.mark.parametrize("replace", [True, False])
def test_a_profile_that_changes_while_its_model_waits_for_room_is_the_one_that_is_loaded(replace: bool) -> None:
    drive = Drive(devices=[cpu("CPU-0", 400)], models=[profile("a")]).start().connect()
    drive.submit(job("busy", "a"))
    drive.peer_says(Load(request="first", model="m", profile=profile("m")))
    drive.pass_time(1)
    drive.peer_says(Load(request="second", model="m", profile=NEW, replace=replace))
    drive.pass_time(1)
    drive.finish("busy")
    drive.pass_time(1)
    assert sorted(d.request for d in drive.told_of(Done)) == ["first", "second"]
    assert [m.parallel for m in orders(drive) if isinstance(m, LoadModel)] == [2, 3]
    drive.check()


def test_loads_that_wait_for_what_is_to_be_replaced_are_answered_with_its_successor() -> None:
    drive = Drive(models=[]).start().connect().connect("ctl", "admin")
    drive.holding_back = {LoadModel}
    drive.peer_says(Load(request="first", model="m", profile=profile("m")), "ctl")
    drive.peer_says(Load(request="second", model="m", profile=NEW, replace=True), "ctl")
    drive.worker_says("CPU-0", drive.loaded("m"))
    assert drive.told_of(Done, "ctl") == []
    drive.worker_says("CPU-0", drive.loaded("m"))
    assert sorted(d.request for d in drive.told_of(Done, "ctl")) == ["first", "second"]
    assert drive.machine.host.models["m"].profile == NEW
    drive.check()


def test_a_later_load_does_not_leave_the_one_that_replaces_unanswered() -> None:
    drive = loaded()
    drive.submit(job("j"))
    drive.peer_says(Load(request="r", model="m", replace=True), "ctl")
    drive.peer_says(Load(request="plain", model="m"), "ctl")
    assert [d.request for d in drive.told_of(Done, "ctl")] == ["plain"]
    drive.finish("j")
    assert [d.request for d in drive.told_of(Done, "ctl")] == ["plain", "r"]
    assert [type(m) for m in orders(drive)] == [LoadModel, UnloadModel, LoadModel]
    drive.check()


def test_a_model_without_a_newer_profile_is_loaded_anew_all_the_same() -> None:
    drive = loaded()
    drive.peer_says(Load(request="r", model="m", replace=True), "ctl")
    assert [type(m) for m in orders(drive)] == [LoadModel, UnloadModel, LoadModel]
    assert drive.told_of(Done, "ctl")[-1].request == "r"


def test_jobs_that_wait_for_a_new_profile_whose_file_is_missing_are_told() -> None:
    drive = loaded()
    drive.submit(job("j"))
    drive.peer_says(Load(request="r", model="m", profile=NEW, replace=True), "ctl")
    drive.submit(job("later"))
    drive.absent.add("m")
    drive.finish("j")
    assert drive.ends() == {"j": "ended", "later": "model_loading_failed"}
    assert "is not on this host" in drive.told_of(Refused, "ctl")[-1].message


def test_a_neurons_own_file_overrides_source_and_engine_only() -> None:
    own = profile("m", engine=EngineOptions(threads=3, batch=64))
    own = Profile(id="m", source="file:/own.gguf", context=500, engine=own.engine)
    drive = Drive(models=[own]).start().connect()
    ours = profile("m", parallel=4, engine=EngineOptions(threads=1, swa_full=True))
    drive.peer_says(Load(request="l", model="m", profile=ours))
    in_force = drive.machine.host.models["m"].profile
    assert (in_force.source, in_force.context, in_force.parallel) == ("file:/own.gguf", 1000, 4)
    assert in_force.engine == EngineOptions(threads=3, batch=64, swa_full=True)
    assert [m.path for m in orders(drive) if isinstance(m, LoadModel)] == ["/own.gguf"]
    drive.peer_says(Load(request="l", model="m", profile=ours))
    assert [r.outdated for r in replicas(drive)] == [False]


def presence(drive: Drive) -> list[str | None]:
    state = drive.machine.published
    assert state is not None
    return [m.presence for m in state.models]


@pytest.mark.parametrize(("source", "word"), [("file:/m.gguf", "missing"), ("hf:org/repo:Q4_0", "downloadable")])
def test_a_neuron_tells_where_the_file_is(source: str, word: str) -> None:
    drive = Drive(models=[profile("here"), Profile(id="m", source=source)])
    drive.absent.add("m")
    drive.start().pass_time(0.1)
    assert presence(drive) == ["present", word]
    state = drive.machine.published
    assert state is not None
    forecasts = [m.forecasts for m in state.models]
    assert [(f.device, f.context, f.kv_tokens, f.kv_mb) for f in forecasts[0]] == [("CPU-0", 1000, 2048, 2)]
    assert forecasts[1] == []


def test_a_host_without_the_file_comes_last_and_is_told_so() -> None:
    def without(presence: str) -> Any:
        return model_state("m", status="failed", replicas=[], memory_mb=None, reason="no", presence=presence)

    nodes = [node("missing", without("missing")), node("fetchable", without("downloadable")), node("unknown"),
             node("has", model_state("m", status="unloaded", replicas=[], presence="present"))]  # fmt: skip
    places = placement.rank(nodes, "m", Profile(id="m", source="hf:a/b"))
    assert [p.node for p in places] == ["has", "unknown", "fetchable", "missing"]
    assert places[2].reasons[-1] == "it has not fetched the file yet"
    assert places[3].reasons[-1] == "it has no such file"


def test_a_saved_profile_never_stands_above_the_neurons_own_file() -> None:
    drive = loaded(parallel=7)
    drive.peer_says(Submit(jobs=[], profile=profile("m")))
    assert isinstance(drive.machine.published, NodeState)
    assert drive.machine.host.models["m"].own == profile("m", parallel=7)
