"""Which neurons an admin's order goes to."""

from typing import Any

import pytest

from common.catalogue import Profile
from common.errors import Code, RequestError
from common.messages import Drain, Load, Pause, Pin, RestartWorker, Resume, Undrain, Unload
from cortex.fleet.contract import Order, Verb
from cortex.fleet.errands import plan
from cortex.fleet.view import LinkState, Node
from tests.support.fake_neuron import model_state, node_state

PROFILE = Profile(id="m", source="file:/m.gguf")


def fleet(**statuses: str | None) -> dict[str, Node]:
    """Return neurons that are up, with model m in this status; None: they do not know it."""
    nodes = {}
    for name, status in statuses.items():
        made = nodes[name] = Node(name)
        made.link = LinkState.UP
        changes: dict[str, Any] = {} if status == "loaded" else {"replicas": []}
        made.apply(node_state(*([model_state("m", status=status, **changes)] if status else [])))
    return nodes


def asked(verb: Verb, nodes: dict[str, Node], **order: Any) -> dict[str, Any]:
    return {n: make("r") for n, make in plan(verb, Order(**order), nodes, PROFILE).items()}


def test_a_load_goes_to_who_has_the_model_and_else_is_left_to_placement() -> None:
    nodes = fleet(a=None, b="loaded", c="unloaded")
    assert asked("load", nodes, model="m") == {"b": Load(request="r", model="m", profile=PROFILE)}
    assert asked("load", fleet(a=None, c="unloaded"), model="m") == {}


def test_a_load_on_a_named_neuron_adds_a_replica_there() -> None:
    nodes = fleet(a=None, b="loaded")
    assert asked("load", nodes, model="m", node="a", device="d") == {
        "a": Load(request="r", model="m", profile=PROFILE, device="d")
    }


def test_an_unload_goes_to_every_holder_or_to_the_named_one() -> None:
    nodes = fleet(a="loaded", b="loaded", c="unloaded")
    assert asked("unload", nodes, model="m") == {n: Unload(request="r", model="m") for n in "ab"}
    assert list(asked("unload", nodes, model="m", node="c")) == ["c"]
    assert asked("unload", fleet(c="unloaded"), model="m") == {}


def test_a_pin_needs_a_holder_and_an_unpin_goes_to_all_who_know_the_model() -> None:
    nodes = fleet(a="loaded", b="unloaded", c=None)
    assert asked("pin", nodes, model="m") == {"a": Pin(request="r", model="m")}
    assert sorted(asked("unpin", nodes, model="m")) == ["a", "b"]
    with pytest.raises(RequestError, match="load it first"):
        asked("pin", fleet(b="unloaded"), model="m")


def test_a_drain_is_of_a_neuron_one_of_its_devices_or_a_model() -> None:
    nodes = fleet(a="loaded", b=None)
    assert asked("drain", nodes, node="b") == {"b": Drain(request="r", scope="node")}
    assert asked("undrain", nodes, node="b", device="d") == {"b": Undrain(request="r", scope="device", target="d")}
    assert asked("drain", nodes, model="m") == {"a": Drain(request="r", scope="model", target="m")}


def test_a_pause_and_a_restart_are_of_one_device_of_a_neuron() -> None:
    nodes, place = fleet(a="loaded", b=None), {"node": "b", "device": "d"}
    assert asked("pause", nodes, **place, for_s=60.0) == {"b": Pause(request="r", device="d", for_s=60.0)}
    assert asked("resume", nodes, **place) == {"b": Resume(request="r", device="d")}
    assert asked("restart", nodes, **place) == {"b": RestartWorker(request="r", device="d")}


@pytest.mark.parametrize(
    ("verb", "order", "code", "param"),
    [
        ("load", {}, Code.MISSING_FIELD, "model"),
        ("load", {"model": "m", "node": "x"}, Code.NOT_FOUND, "node"),
        ("load", {"model": "m", "device": "d"}, Code.MISSING_FIELD, "node"),
        ("drain", {}, Code.MISSING_FIELD, "node"),
        ("pause", {}, Code.MISSING_FIELD, "device"),
        ("restart", {"node": "a"}, Code.MISSING_FIELD, "device"),
        ("resume", {"node": "x", "device": "d"}, Code.NOT_FOUND, "node"),
        ("drain", {"model": "m", "node": "a", "device": "d"}, Code.INVALID_VALUE, "device"),
    ],
)
def test_an_order_that_makes_no_sense_names_the_field(
    verb: Verb, order: dict[str, str], code: Code, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        asked(verb, fleet(a="loaded"), **order)
    assert (caught.value.code, caught.value.param) == (code, param)
