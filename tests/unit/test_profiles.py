"""A models file that is read again: what is not in use changes at once, what is changes when it no longer is."""

import pytest

from common.catalogue import Catalogue, Profile
from common.errors import Code
from common.messages import Load, Refused, Submit, Unload
from neuron.supervisor import events
from tests.support.drive import Drive, job, profile


def reload(drive: Drive, *profiles: Profile, **aliases: str) -> None:
    drive.feed(events.CatalogueRead(Catalogue(models=list(profiles), aliases={**aliases})))
    drive.check()


def known(drive: Drive) -> dict[str, Profile]:
    return {m.id: m.profile for m in drive.machine.host.models.values()}


def test_new_changed_and_removed_profiles_of_idle_models_apply_at_once() -> None:
    drive = Drive(models=[profile("kept"), profile("changed"), profile("removed")]).start().connect()
    kept = drive.machine.host.models["kept"]
    reload(drive, profile("kept"), profile("changed", parallel=3), profile("new"), also="new")
    assert known(drive) == {
        "kept": profile("kept"),
        "changed": profile("changed", parallel=3),
        "new": profile("new"),
    }
    assert drive.machine.host.models["kept"] is kept, "what has not changed is not looked at again"
    drive.submit(job("j", "also"))
    drive.finish("j")
    assert drive.ends() == {"j": "ended"}


def test_a_model_in_use_keeps_its_profile_until_it_is_unloaded() -> None:
    drive = Drive(models=[profile("a"), profile("b")]).start().connect()
    drive.submit(job("j", "a"), job("k", "b"))
    reload(drive, profile("a", parallel=4))
    assert known(drive) == {"a": profile("a"), "b": profile("b")}
    drive.finish("j")
    drive.finish("k")
    for name in ("a", "b"):
        drive.peer_says(Unload(request=name, model=name))
    assert known(drive) == {"a": profile("a", parallel=4)}
    drive.submit(job("l", "a"))
    drive.finish("l")
    assert drive.ends() == {"j": "ended", "k": "ended", "l": "ended"}


def test_a_change_that_is_taken_back_before_it_applied_is_forgotten() -> None:
    drive = Drive(models=[profile("a")]).start().connect()
    drive.submit(job("j", "a"))
    reload(drive)
    reload(drive, profile("a"))
    drive.finish("j")
    drive.peer_says(Unload(request="u", model="a"))
    assert known(drive) == {"a": profile("a")}


def test_a_pin_outlives_a_changed_profile() -> None:
    drive = Drive(models=[profile("a")]).start().connect()
    drive.machine.host.models["a"].pinned = True
    reload(drive, profile("a", parallel=3))
    assert drive.machine.host.models["a"].pinned


def test_gateways_may_tell_of_so_many_models_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron.supervisor.inspection.STRANGERS", 2)
    drive = Drive(models=[profile("own")]).start().connect()
    for name in ("a", "b", "c"):
        drive.peer_says(Submit(jobs=[job(name, name)], profile=profile(name)))
    assert list(known(drive)) == ["own", "a", "b"]
    drive.peer_says(Load(request="l", model="c", profile=profile("c")))
    assert [(r.request, r.code) for r in drive.told_of(Refused)] == [("l", Code.NO_CAPACITY)]
    drive.peer_says(Submit(jobs=[job("again", "a")], profile=profile("a", parallel=3)))
    drive.finish("a")
    drive.finish("b")
    drive.finish("again")
    assert drive.ends() == {"a": "ended", "b": "ended", "c": "model_not_found", "again": "ended"}
