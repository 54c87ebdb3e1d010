"""What lies on disk without a profile is in the list, and a profile stands above it."""

from common.catalogue import Profile
from common.messages import Load, Models, ModelsReply, ModelState, Refused
from neuron.models.library import Found
from neuron.supervisor import events
from tests.support.drive import Drive, job


def find(name: str, problem: str | None = None, path: str | None = None) -> Found:
    path = path or f"/models/{name}.gguf"
    return Found(id=name, path=path, files=[path], size_bytes=1, origin="folder", problem=problem)


def listed(drive: Drive) -> dict[str, ModelState]:
    drive.peer_says(Models(request="r"))
    return {m.id: m for m in drive.told_of(ModelsReply)[-1].models}


def started() -> Drive:
    return Drive().start().connect()


def look(drive: Drive, *found: Found) -> None:
    drive.feed(events.ModelsFound(list(found)))
    drive.check()


def test_a_find_is_listed_without_being_inspected_and_served_when_asked_for() -> None:
    drive = started()
    look(drive, find("a"), find("b", problem="it is truncated"))
    models = listed(drive)
    assert {m.id: (m.status, m.reason) for m in models.values() if m.id != "m"} == {
        "a": ("unloaded", None),
        "b": ("failed", "it is truncated"),
    }
    assert drive.machine.host.models["a"].facts is None
    drive.submit(job("j", "a"))
    drive.finish("j")
    assert drive.ends() == {"j": "ended"}


def test_a_find_that_is_gone_leaves_the_list_unless_it_is_in_use() -> None:
    drive = started()
    look(drive, find("a"), find("b"))
    drive.submit(job("j", "a"))
    look(drive)
    assert set(listed(drive)) == {"m", "a"}
    drive.finish("j")
    look(drive, find("b"))
    assert set(listed(drive)) == {"m", "a", "b"}


def test_a_broken_find_is_healed_by_the_next_look() -> None:
    drive = started()
    look(drive, find("a", problem="it is truncated"))
    look(drive, find("a"))
    assert listed(drive)["a"].status == "unloaded"


def test_a_file_that_a_profile_names_is_not_listed_a_second_time() -> None:
    drive = started()
    look(drive, find("other", path="/m.gguf"), find("m", path="/elsewhere/m.gguf"))
    assert set(listed(drive)) == {"m"}
    assert drive.machine.host.models["m"].profile.source == "file:/m.gguf"


def test_a_gateway_s_profile_refines_a_find_and_is_kept() -> None:
    drive = started()
    look(drive, find("a"))
    refined = Profile(id="a", source="file:/models/a.gguf", parallel=3)
    drive.peer_says(Load(request="r", model="a", profile=refined))
    look(drive, find("a", problem="it is truncated"))
    look(drive)
    assert drive.machine.host.models["a"].profile == refined
    assert not drive.told_of(Refused)
