"""Which neuron is asked to load a model that nobody has."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.catalogue import Profile
from common.messages import DeviceState, ModelState, ReplicaState
from cortex.fleet.placement import Fit, Place, is_feasible, rank
from cortex.fleet.view import LinkState, Node
from tests.support.fake_neuron import model_state, node_state


def profile(**keys: Any) -> Profile:
    """Return the profile of model m, 400 MiB large."""
    return Profile(**{"id": "m", "source": "file:/m.gguf", "vram_mb": 400, **keys})


def device(uuid: str, memory_mb: int | None, reserved_mb: int = 0, **changes: Any) -> DeviceState:
    return DeviceState(
        uuid=uuid, name="d", kind="cpu", state="ready", memory_mb=memory_mb, reserved_mb=reserved_mb, **changes
    )


def node(name: str, *models: ModelState, free: int = 1000, devices: list[DeviceState] | None = None) -> Node:
    """Return a neuron that is up, by default with one device of 1000 MiB of which `free` are free."""
    made = Node(name)
    made.link = LinkState.UP
    made.apply(node_state(*models, devices=devices or [device("dev-0", 1000, 1000 - free)]))
    return made


def resident(model: str, memory_mb: int, *, pinned: bool = False, running: int = 0, on: str = "dev-0") -> ModelState:
    replica = ReplicaState(device=on, status="loaded", memory_mb=memory_mb, running=running)
    return model_state(model, replicas=[replica], pinned=pinned, running=running)


def unloaded(**changes: Any) -> ModelState:
    return model_state("m", status="unloaded", replicas=[], **changes)


def order(*nodes: Node, **keys: Any) -> list[str]:
    return [p.node for p in rank(nodes, "m", profile(**keys))]


def fit(made: Node, **keys: Any) -> Fit:
    (place,) = rank([made], "m", profile(**keys))
    return place.fit


def test_a_neuron_that_has_the_file_comes_before_one_with_more_memory() -> None:
    assert order(node("large"), node("has", unloaded(memory_mb=400), free=500)) == ["has", "large"]


def test_a_neuron_without_the_file_is_asked_last_and_one_that_would_fetch_it_after_those_that_may_have_it() -> None:
    nodes = [
        node("missing", unloaded(presence="missing")),
        node("other", unloaded(presence="downloadable")),
        node("stranger", free=450),
        node("has", unloaded(presence="present"), free=400),
    ]
    assert order(*nodes) == ["has", "stranger", "other", "missing"]
    places = {p.node: p for p in rank(nodes, "m", profile())}
    assert places["missing"].reasons[-1] == "it has no such file"
    assert places["other"].reasons[-1] == "it has not fetched the file yet"
    full = node("full", resident("x", 800, pinned=True), unloaded(presence="present"), free=200)
    assert order(nodes[1], full) == ["full", "other"]
    assert order(nodes[1], full, download="on_demand", source="hf:o/r") == ["other", "full"]


def test_a_neuron_named_in_pinned_on_comes_before_one_with_more_memory() -> None:
    assert order(node("large"), node("named", free=500), pinned_on=["named"]) == ["named", "large"]


def test_free_then_evicting_then_draining_then_unknown_then_hopeless_then_failed() -> None:
    nodes = [
        node("failed", unloaded(feasible=False, reason="no such file")),
        node("never", devices=[device("dev-0", 300)]),
        node("pinned", resident("x", 800, pinned=True), free=200),
        node("unknown", devices=[device("dev-0", None)]),
        node("busy", resident("x", 800, running=1), free=200),
        node("evicting", resident("x", 800), free=200),
        node("free", free=400),
    ]
    assert order(*nodes) == ["free", "evicting", "busy", "unknown", "pinned", "never", "failed"]
    assert [p.is_hopeless for p in rank(nodes, "m", profile())][:4] == [False] * 4


def test_most_free_memory_wins_among_those_where_it_fits() -> None:
    assert order(node("a", free=500), node("b", free=900), node("c", free=700)) == ["b", "c", "a"]


def test_memory_promised_by_loads_of_this_process_counts_until_the_neuron_tells() -> None:
    a, b = node("a", free=900), node("b", free=800)
    a.note_load("other", 400)
    assert order(a, b) == ["b", "a"]
    a.apply(node_state(model_state("other"), seq=2, devices=[device("dev-0", 1000, 100)]))
    assert order(a, b) == ["a", "b"]
    a.note_load("other", 400)
    a.forget_load("other")
    assert order(a, b) == ["a", "b"]


def test_what_another_neuron_found_stands_in_for_an_unknown_size() -> None:
    nodes = [node("knows", unloaded(memory_mb=700), free=100), node("stranger", free=600)]
    (_, stranger) = rank(nodes, "m", profile(vram_mb=None))
    assert (stranger.node, stranger.need_mb, stranger.fit) == ("stranger", 700, Fit.PINNED)
    (alone,) = rank([node("stranger")], "m", profile(vram_mb=None))
    assert (alone.need_mb, alone.fit) == (None, Fit.UNKNOWN)


def test_an_explicit_size_is_a_floor_that_a_measurement_may_raise() -> None:
    (place,) = rank([node("a", unloaded(memory_mb=300))], "m", profile())
    assert place.need_mb == 400
    (place,) = rank([node("a", unloaded(memory_mb=600))], "m", profile())
    assert place.need_mb == 600


def test_a_model_on_several_devices_needs_its_share_of_each() -> None:
    two = [device("d", 1000, 600), device("e", 1000, 700)]
    assert fit(node("a", devices=two), min_devices=2, vram_mb=600) is Fit.FREE
    assert fit(node("a", devices=two), min_devices=2, vram_mb=700) is Fit.PINNED
    assert fit(node("a", devices=two), min_devices=3) is Fit.NEVER
    spanning = ReplicaState(device="d", also_on=["e"], status="loaded", memory_mb=1200)
    holding = node("a", model_state("x", replicas=[spanning]), devices=two)
    assert fit(holding, min_devices=2, vram_mb=1800) is Fit.EVICTING
    assert fit(holding, vram_mb=900) is Fit.EVICTING
    assert fit(holding, vram_mb=1000) is Fit.EVICTING
    assert fit(holding, min_devices=2, vram_mb=2001) is Fit.NEVER


def test_devices_that_do_not_serve_or_are_too_small_for_the_profile_do_not_count() -> None:
    assert fit(node("a", devices=[device("d", 1000, reason="lost")])) is Fit.NEVER
    assert fit(node("a", devices=[device("d", 1000, draining=True)])) is Fit.NEVER
    assert fit(node("a", devices=[device("d", 1000)]), min_device_vram_mb=2000) is Fit.NEVER
    assert fit(node("a", devices=[device("d", 1000), device("e", 3000)]), min_device_vram_mb=2000) is Fit.FREE


def test_a_model_of_a_higher_class_does_not_give_way_and_one_of_the_same_does() -> None:
    held = node("a", resident("x", 800), free=200)
    assert fit(held, residency_priority=99) is Fit.PINNED
    assert fit(held, residency_priority=100) is Fit.EVICTING


def test_only_models_on_the_same_device_can_give_way() -> None:
    devices = [device("d0", 1000, 900), device("d1", 300, 300)]
    assert fit(node("a", resident("x", 300, on="d1"), devices=devices)) is Fit.PINNED
    assert fit(node("a", resident("x", 300, on="d0"), devices=devices)) is Fit.EVICTING


@pytest.mark.parametrize("link", [LinkState.DOWN, LinkState.SUSPECT, LinkState.REFUSED])
def test_a_neuron_that_is_not_up_is_not_asked(link: LinkState) -> None:
    silent = node("silent")
    silent.link = link
    assert order(silent) == []


def test_without_a_profile_only_neurons_that_know_the_model_are_asked() -> None:
    assert [p.node for p in rank([node("a"), node("b", unloaded())], "m", None)] == ["b"]


def test_reasons_are_given_for_people() -> None:
    (place,) = rank([node("a", unloaded(memory_mb=100))], "m", profile(pinned_on=["a"]))
    assert place.reasons == ["has the file", "named in pinned_on", "fits in free memory"]


def test_a_model_larger_than_every_device_of_a_host_is_not_feasible_there() -> None:
    assert not is_feasible(node("small", devices=[device("d", 300)]), profile())
    assert is_feasible(node("large", free=0), profile())
    assert is_feasible(node("large"), profile(vram_mb=None))


hosts = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 800), st.booleans(), st.integers(0, 2), st.booleans()), max_size=6
)


@given(hosts, st.randoms(), st.integers(1, 1200))
def test_every_gateway_process_ranks_alike_and_what_fits_comes_first(
    fleet: list[tuple[int, int, bool, int, bool]], random: Any, vram_mb: int
) -> None:
    nodes = []
    for number, (free, held, is_pinned, running, knows) in enumerate(fleet):
        models = [resident("x", held, pinned=is_pinned, running=running)] + ([unloaded(memory_mb=1)] if knows else [])
        nodes.append(node(f"n{number}", *models, free=free))
    expected = rank(nodes, "m", profile(vram_mb=vram_mb))
    random.shuffle(nodes)
    assert rank(nodes, "m", profile(vram_mb=vram_mb)) == expected
    assert len(expected) == len(fleet)
    hope = [p.is_hopeless for p in expected]
    assert hope == sorted(hope)
    assert all(_fits(p, vram_mb) for p in expected if p.fit is Fit.FREE)


def _fits(place: Place, need_mb: int) -> bool:
    return place.free_mb is not None and need_mb <= place.free_mb
