"""A load that cannot work touches nobody, is remembered while nothing changes, and undoes what it brought about."""

from pathlib import Path

import pytest

from common.catalogue import Profile
from common.errors import Code
from common.messages import (
    Abort,
    Done,
    Failed,
    Inspect,
    InspectFailed,
    JobKey,
    Load,
    LoadFailed,
    LoadModel,
    Pin,
    Refused,
    Submit,
    Unloaded,
    UnloadModel,
)
from neuron.sources import identify
from neuron.supervisor import events
from tests.support.drive import Drive, cpu, job, profile

BROKEN = LoadFailed(model="m", code=Code.MODEL_LOADING_FAILED, message="K cache type q8_0 with block size 32 …")
NO_MEMORY = LoadFailed(model="m", code=Code.NO_CAPACITY, message="out of memory")
LARGE = profile("m", vram_mb=500)


def drive_with(*residents: Profile, memory_mb: int = 700, model: Profile = LARGE) -> Drive:
    """Return a machine on which `residents` are loaded, and `m` is known whose loads a test answers itself."""
    drive = Drive(devices=[cpu("CPU-0", memory_mb)], models=[*residents, model])
    drive.identities["m"] = "first"
    drive.start().connect().connect("ctl", "admin")
    for resident in residents:
        drive.peer_says(Load(request=resident.id, model=resident.id), "ctl")
    drive.pass_time(11)
    drive.holding_back.add(LoadModel)
    return drive


def errors(drive: Drive) -> list[tuple[str, str]]:
    return [(i.code.value, i.message) for m in drive.told_of(Failed) for i in m.items]


def loads(drive: Drive, model: str = "m") -> list[LoadModel]:
    return [m for m in drive.sent_to("CPU-0", LoadModel) if m.model == model]


def unloads(drive: Drive) -> list[str]:
    return [m.model for m in drive.sent_to("CPU-0", UnloadModel)]


def ask_fifty_times(drive: Drive) -> None:
    """Submit fifty jobs over a minute and a half; each is answered before anything else happens."""
    for number in range(50):
        before = len(errors(drive))
        drive.submit(job(f"again{number}"))
        assert len(errors(drive)) == before + 1
        drive.pass_time(1.7)
    drive.check()


def test_a_load_that_cannot_work_is_tried_once_and_touches_nobody_again() -> None:
    drive = drive_with(profile("a"), profile("b"), memory_mb=800)
    drive.peer_says(Pin(request="p", model="b"), "ctl")
    drive.submit(job("first"))
    assert unloads(drive) == ["a"]
    drive.holding_back.remove(LoadModel)
    drive.worker_says("CPU-0", BROKEN)
    assert [m.model for m in drive.sent_to("CPU-0", LoadModel)][-1] == "a"  # it is back
    ask_fifty_times(drive)
    assert unloads(drive) == ["a"]
    assert len(loads(drive)) == 1
    assert set(errors(drive)[1:]) == {("model_loading_failed", f"model 'm' cannot be loaded: {BROKEN.message}")}


def test_a_file_that_prep_refuses_is_read_once_and_evicts_nobody() -> None:
    drive = drive_with(profile("a"), profile("b"))
    drive.machine.host.models["m"].facts = None
    drive.holding_back.add(Inspect)
    drive.submit(job("first"))
    number = drive.sent_to("prep", Inspect)[-1].number
    drive.prep_says(InspectFailed(model="m", message="m.gguf is truncated: 5 bytes of 9", number=number))
    read = len(drive.sent_to("prep", Inspect))
    ask_fifty_times(drive)
    assert unloads(drive) == []
    assert len(drive.sent_to("prep", Inspect)) == read
    assert len(set(errors(drive))) == 1


def test_a_model_that_can_never_fit_is_refused_at_once() -> None:
    drive = drive_with(profile("a"), profile("b"), model=profile("m", vram_mb=5000))
    ask_fifty_times(drive)
    assert (unloads(drive), loads(drive)) == ([], [])
    assert len(set(errors(drive))) == 1
    assert "5000 MiB" in errors(drive)[0][1]


def test_a_changed_file_gets_another_chance() -> None:
    drive = drive_with()
    drive.submit(job("first"))
    drive.worker_says("CPU-0", BROKEN)
    drive.pass_time(3)
    drive.identities["m"] = "second"
    drive.submit(job("again"))
    assert len(loads(drive)) == 2


def test_a_changed_profile_gets_another_chance() -> None:
    drive = Drive(models=[])
    drive.identities["m"] = "first"
    drive.start().connect()
    drive.holding_back.add(LoadModel)
    drive.peer_says(Submit(jobs=[job("first")], profile=profile("m")))
    drive.worker_says("CPU-0", BROKEN)
    drive.pass_time(3)
    drive.peer_says(Submit(jobs=[job("same")], profile=profile("m")))
    assert len(loads(drive)) == 1
    drive.peer_says(Submit(jobs=[job("other")], profile=profile("m", parallel=3)))
    assert len(loads(drive)) == 2


def test_a_load_out_of_memory_is_tried_once_more_with_more() -> None:
    drive = drive_with(profile("a", vram_mb=100), memory_mb=1000)
    drive.peer_says(Load(request="l", model="m"), "ctl")
    before = drive.machine.host.models["m"].replicas["CPU-0"].plan.estimated_mb
    drive.worker_says("CPU-0", NO_MEMORY)
    assert len(loads(drive)) == 2
    assert drive.machine.host.models["m"].replicas["CPU-0"].plan.estimated_mb >= before + 256
    assert drive.told_of(Refused, "ctl") == []
    drive.worker_says("CPU-0", drive.loaded("m"))
    assert "m is loaded" in drive.told_of(Done, "ctl")[-1].text
    assert drive.machine.host.models["m"].replicas["CPU-0"].memory_mb == 500
    drive.check()


def test_a_load_out_of_memory_twice_fails_and_who_went_for_it_comes_back() -> None:
    drive = drive_with(profile("a"))
    drive.submit(job("first"))
    assert unloads(drive) == ["a"]
    drive.worker_says("CPU-0", NO_MEMORY)
    assert len(loads(drive)) == 2
    assert errors(drive) == []
    drive.worker_says("CPU-0", NO_MEMORY)
    assert errors(drive) == [("model_loading_failed", "model 'm' cannot be loaded: out of memory")]
    assert [m.model for m in drive.sent_to("CPU-0", LoadModel)] == ["a", "m", "m", "a"]
    drive.submit(job("soon"))
    assert len(loads(drive)) == 2
    drive.pass_time(31)
    drive.submit(job("later"))
    assert unloads(drive) == ["a"]  # it is still loading again, and its turn has not ended
    drive.check()


def drive_with_half_made_room() -> Drive:
    """Return a machine on which `m` waits for room: `a` has gone for it, `b` still has a job."""
    drive = drive_with(profile("a"), profile("b"), memory_mb=700)
    drive.submit(job("served", "b"))
    drive.finish("served")
    drive.submit(job("long", "b"))
    drive.pass_time(1)
    drive.submit(job("first"))
    assert unloads(drive) == ["a"]
    assert loads(drive) == []
    return drive


def test_a_want_whose_time_is_over_brings_back_who_went_for_it() -> None:
    drive = drive_with_half_made_room()
    drive.pass_time(drive.machine.host.settings.swap_wait_s + 1)
    assert errors(drive)[0][0] == "no_capacity"
    assert [m.model for m in drive.sent_to("CPU-0", LoadModel)] == ["a", "b", "a"]
    drive.worker_says("CPU-0", drive.loaded("a"))
    drive.finish("long")
    drive.pass_time(20)
    assert unloads(drive) == ["a"]
    drive.check()


def test_a_want_that_nobody_waits_for_any_more_brings_back_who_went_for_it() -> None:
    drive = drive_with_half_made_room()
    drive.peer_says(Abort(jobs=[JobKey("first", 1)]))
    assert [m.model for m in drive.sent_to("CPU-0", LoadModel)] == ["a", "b", "a"]
    drive.check()


def test_who_is_still_being_unloaded_when_the_want_ends_comes_back_afterwards() -> None:
    drive = drive_with(profile("a"))
    drive.holding_back.add(UnloadModel)
    drive.submit(job("first"))
    drive.peer_says(Abort(jobs=[JobKey("first", 1)]))
    assert len(loads(drive, "a")) == 1
    drive.worker_says("CPU-0", Unloaded(model="a"))
    assert len(loads(drive, "a")) == 2
    drive.check()


def test_what_came_back_by_itself_is_not_loaded_twice() -> None:
    drive = drive_with(profile("a"))
    drive.submit(job("first"))
    drive.worker_says("CPU-0", BROKEN)
    drive.worker_says("CPU-0", drive.loaded("a"))
    assert len(loads(drive, "a")) == 2
    drive.pass_time(11)
    drive.check()


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00002.gguf"])
def test_a_files_identity_changes_with_what_is_in_it_and_beside_it(tmp_path: Path, name: str) -> None:
    files = [tmp_path / n for n in ("m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "chat.jinja")]
    for file in files:
        file.write_text("x")
    paths = [str(tmp_path / name), str(tmp_path / "chat.jinja")]
    first = identify(paths)
    assert identify(paths) == first != identify(paths[:1])
    files[-1].write_text("xy")
    second = identify(paths)
    assert second != first
    files[2].unlink()
    assert (identify(paths) != second) == (name != "m.gguf")


def test_an_answer_about_a_file_that_is_the_same_costs_no_reading() -> None:
    drive = drive_with()
    model = drive.machine.host.models["m"]
    model.lasting_fault = ("first", "it is damaged")
    drive.machine._inspection.look_again(model)
    assert (model.fault, model.inspecting) == (None, True)
    drive.feed(events.SourceResolved("m", model.inspection, "/m.gguf", identity="first"))
    assert (model.fault, model.inspecting) == ("it is damaged", False)
