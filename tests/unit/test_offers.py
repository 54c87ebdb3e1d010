"""What a gateway's models file says is known on the host before anybody asks for it, and whether its file is there."""

from msgspec import structs

from common.catalogue import Catalogue, Profile, Variant
from common.messages import Inspect, Inspected, Load, LoadModel, Models, ModelsReply, ModelState, NodeState, Offer
from neuron.memory.saved import Saved
from neuron.models.library import Found
from neuron.settings import NeuronSettings
from neuron.supervisor import events
from neuron.supervisor.report import health
from tests.support.drive import FACTS, Drive, job, profile


def listed(drive: Drive) -> dict[str, ModelState]:
    drive.peer_says(Models(request="r"))
    return {m.id: m for m in drive.told_of(ModelsReply)[-1].models}


def presences(drive: Drive) -> dict[str, str | None]:
    return {m.id: m.presence for m in listed(drive).values()}


def started(*absent: str, own: list[Profile] | None = None) -> Drive:
    drive = Drive(models=own or [])
    drive.absent_paths.update(absent)
    return drive.start().connect()


def offer(drive: Drive, *profiles: Profile, peer: str = "gw") -> None:
    drive.peer_says(Offer(profiles=list(profiles)), peer)
    drive.check()


HUB = Profile(id="hub", source="hf:org/repo:Q4_0")


def test_presence_is_told_before_the_first_request() -> None:
    drive = started("/gone.gguf", HUB.source)
    offer(drive, profile("m"), profile("gone"), HUB)
    assert presences(drive) == {"m": "present", "gone": "missing", "hub": "downloadable"}
    assert all((m.status, m.reason) == ("unloaded", None) for m in listed(drive).values())
    assert health(drive.machine.host)[0] == "ok"
    drive.pass_time(0.1)
    pushed = {m.id: m.presence for s in drive.told_of(NodeState) for m in s.models}
    assert pushed == presences(drive)


def test_files_that_are_here_are_read_one_by_one_while_prep_is_idle() -> None:
    drive = started("/gone.gguf")
    offer(drive, profile("a"), profile("b"), profile("gone"), profile("huge", vram_mb=10**6))
    assert drive.sent_to("prep", Inspect) == []
    drive.holding_back.add(Inspect)
    drive.pass_time(1)
    assert len(drive.sent_to("prep", Inspect)) == 1
    drive.holding_back.clear()
    [first] = drive.sent_to("prep", Inspect)
    drive.prep_says(Inspected(model=first.model, facts=FACTS, number=first.number))
    drive.pass_time(2)
    assert sorted(m.model for m in drive.sent_to("prep", Inspect)) == ["a", "b", "huge"]
    states = listed(drive)
    assert (states["a"].memory_mb, states["huge"].feasible) == (300, False)


def test_a_file_that_comes_or_goes_is_noticed() -> None:
    drive = started("/m.gguf")
    offer(drive, profile("m"))
    drive.submit(job("early"))
    assert (listed(drive)["m"].status, presences(drive)) == ("failed", {"m": "missing"})
    assert health(drive.machine.host)[0] == "ok"  # other hosts have it
    drive.absent_paths.clear()
    drive.feed(drive.look())
    assert (listed(drive)["m"].status, presences(drive)) == ("unloaded", {"m": "present"})
    drive.submit(job("served"))
    drive.finish("served")
    drive.absent_paths.add("/m.gguf")
    drive.feed(drive.look())
    assert presences(drive) == {"m": "present"}  # loaded
    drive.peer_says(Load(request="x", model="m"))
    assert drive.ends() == {"early": "model_loading_failed", "served": "ended"}


def test_a_file_that_went_is_looked_for_before_anybody_makes_room_for_it() -> None:
    drive = started(own=[profile("m")])
    drive.absent_paths.add("/m.gguf")
    drive.feed(drive.look())
    assert presences(drive) == {"m": "missing"}
    drive.submit(job("j"))
    assert drive.ends() == {"j": "model_loading_failed"}
    assert drive.sent_to("CPU-0", LoadModel) == []


def test_of_variants_any_file_counts() -> None:
    variants = [Variant(source="file:/large.gguf"), Variant(source="file:/small.gguf")]
    drive = started("/large.gguf")
    offer(drive, Profile(id="m", source="hf:org/repo", variants=variants))
    assert presences(drive) == {"m": "present"}


def test_what_no_gateway_describes_any_more_goes_unless_it_is_used() -> None:
    drive = started()
    offer(drive, profile("a"), profile("b"))
    drive.submit(job("j", "b"))
    offer(drive)
    assert set(listed(drive)) == {"b"}
    drive.finish("j")
    drive.connect("other")
    offer(drive, profile("c"), peer="other")
    assert set(listed(drive)) == {"b", "c"}  # b is loaded
    drive.machine.host.models["b"].replicas.clear()
    drive.machine.host.ledger.release("CPU-0", "b")
    offer(drive, profile("c"), peer="other")
    assert set(listed(drive)) == {"c"}


def test_gateways_that_describe_different_models_do_not_undo_each_other() -> None:
    drive = started().connect("other")
    offer(drive, profile("a"))
    offer(drive, profile("b"), peer="other")
    offer(drive, profile("a"), profile("c"))
    assert set(listed(drive)) == {"a", "b", "c"}
    drive.pass_time(10, beats=False)  # both gateways are gone, and their models stay
    assert set(drive.machine.host.models) == {"a", "b", "c"}
    drive.connect("third")
    offer(drive, profile("b"), peer="third")
    assert set(drive.machine.host.models) == {"b"}


def test_the_neurons_own_word_is_in_force_again_once_the_gateways_is_gone() -> None:
    own = profile("m", parallel=4)
    drive = started(own=[own])
    offer(drive, profile("m", parallel=2))
    assert drive.machine.host.models["m"].profile.parallel == 2
    offer(drive)
    assert drive.machine.host.models["m"].profile == own


def test_a_file_that_a_cold_profile_names_is_not_listed_a_second_time() -> None:
    drive = started()
    found = Found(id="file-name", path="/m.gguf", files=["/m.gguf"], size_bytes=1, origin="folder")
    drive.feed(events.ModelsFound([found]))
    assert set(listed(drive)) == {"file-name"}
    offer(drive, profile("m"))
    assert set(listed(drive)) == {"m"}
    offer(drive)
    drive.feed(events.ModelsFound([found]))
    assert set(listed(drive)) == {"file-name"}


def test_a_changed_file_of_this_host_is_looked_for_anew() -> None:
    drive = started("/new.gguf", own=[profile("m")])
    drive.feed(events.CatalogueRead(Catalogue(models=[Profile(id="new", source="file:/new.gguf")])))
    assert presences(drive) == {"new": "missing"}


def test_a_preload_of_a_gateways_model_works_at_the_next_start_and_when_it_is_first_described() -> None:
    settings = NeuronSettings(name="test", preload=["m"])
    drive = Drive(models=[], settings=settings).start().connect()
    offer(drive, profile("m"))
    assert [m.model for m in drive.sent_to("CPU-0", LoadModel)] == ["m"]
    saved = drive.machine._keeper._take()
    assert saved.preload == [profile("m")]
    again = Drive(models=[], settings=settings)
    again.feed(events.Started(Saved(preload=saved.preload), 5000.0))
    assert [m.model for m in again.sent_to("CPU-0", LoadModel)] == ["m"]


def test_what_an_earlier_description_had_read_is_not_taken_for_the_present_one() -> None:
    drive = started()
    offer(drive, profile("a"))
    drive.holding_back.add(Inspect)
    drive.pass_time(1)
    offer(drive, structs.replace(profile("a"), source="file:/other.gguf"))
    drive.pass_time(1)
    first, second = drive.sent_to("prep", Inspect)
    assert (first.path, second.path) == ("/a.gguf", "/other.gguf")
    model = drive.machine.host.models["a"]
    drive.prep_says(Inspected(model="a", facts=FACTS, number=first.number))
    assert (model.inspecting, model.facts) == (True, None)
    drive.prep_says(Inspected(model="a", facts=FACTS, number=second.number))
    assert (model.inspecting, model.facts) == (False, FACTS)
