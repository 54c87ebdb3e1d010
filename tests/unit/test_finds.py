"""What lies on disk without a profile is in the list, and a profile stands above it."""

from common.catalogue import Catalogue, Defaults, Profile
from common.engine_options import EngineOptions, SamplingDefaults
from common.messages import Load, LoadModel, Models, ModelsReply, ModelState, Offer, Refused
from neuron.memory.saved import Resident, Saved
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


def test_defaults_of_the_gateway_and_of_this_host_reach_models_without_a_profile() -> None:
    drive = started()
    look(drive, find("a"), find("b"))
    own = Defaults(context=700, engine=EngineOptions(threads=3), sampling=SamplingDefaults(top_k=9, top_p=0.5))
    drive.feed(events.CatalogueRead(Catalogue(models=[], defaults=own)))
    given = Defaults(
        parallel=3, engine=EngineOptions(threads=1, cache_type_k="f32"), sampling=SamplingDefaults(top_k=5)
    )
    drive.peer_says(Offer(defaults=given))
    look(drive, find("a"), find("b"), find("late"))
    for name in ("a", "b", "late"):
        model = drive.machine.host.models[name].profile
        assert (model.context, model.parallel) == (700, 3)
        assert model.engine == EngineOptions(threads=3, cache_type_k="f32")  # this host's own engine stands above
        assert model.sampling == SamplingDefaults(top_k=5, top_p=0.5)


def test_defaults_that_change_mark_a_loaded_find_and_replace_it_when_idle() -> None:
    drive = started()
    look(drive, find("a"))
    drive.peer_says(Load(request="r", model="a"))
    drive.peer_says(Offer(defaults=Defaults(context=600)))
    assert [r.outdated for r in listed(drive)["a"].replicas] == [True]
    look(drive, find("a"))
    drive.pass_time(11)
    assert [r.outdated for r in listed(drive)["a"].replicas] == [False]
    assert [m.context for m in drive.sent_to("CPU-0", LoadModel)] == [2048, 600]
    look(drive, find("a"))
    look(drive)
    drive.check()


def test_a_find_that_was_loaded_before_a_restart_still_follows_defaults_and_the_disk() -> None:
    drive = Drive(models=[])
    row = Resident(profile=Profile(id="a", source="file:/models/a.gguf"), device="CPU-0", found=True)
    drive.feed(events.Started(Saved(resident=[row]), 5000.0))
    drive.connect()
    look(drive, find("a"))
    drive.peer_says(Offer(defaults=Defaults(context=600)))
    drive.pass_time(11)
    assert drive.machine.host.models["a"].profile.context == 600
    drive.machine._keeper.save()
    look(drive)
    assert "a" in listed(drive)  # in use
