from common.catalogue import Catalogue, Profile
from common.messages import DeviceState, ModelState
from cortex.fleet.listing import judge_health, list_models
from cortex.fleet.view import LinkState, Node
from tests.support.fake_neuron import model_state, node_state

CATALOGUE = Catalogue(models=[Profile(id="m", source="x", context=500)], aliases={"mine": "m"})


def node(name: str, *models: ModelState, link: LinkState = LinkState.UP, **changes: object) -> Node:
    """Return a neuron that has told its state."""
    made = Node(name, f"{name}:1")
    made.apply(node_state(*models, **changes))  # type: ignore[arg-type]
    made.link = link
    return made


def status(*nodes: Node) -> str:
    """Return the status of the catalogue's model."""
    value: str = list_models(nodes, CATALOGUE, 1)[0]["status"]["value"]
    return value


def unloaded(**changes: object) -> ModelState:
    """Return a model that is known and nowhere."""
    return model_state("m", status="unloaded", replicas=[], **changes)


def test_a_model_that_only_the_catalogue_knows_is_listed_as_unloaded() -> None:
    (entry, alias) = list_models([], CATALOGUE, 7)
    assert (entry["id"], entry["status"], entry["created"]) == ("m", {"value": "unloaded"}, 7)
    assert (entry["meta"], entry["aliases"]) == ({"n_ctx": 500}, ["mine"])
    assert (alias["id"], alias["alias_of"]) == ("mine", "m")


def test_the_best_status_anywhere_is_the_models() -> None:
    failed = model_state("m", status="failed", replicas=[], reason="broken", feasible=False)
    loading, loaded = model_state("m", status="loading"), model_state("m")
    assert status(node("a", unloaded()), node("b", failed)) == "unloaded"
    assert status(node("a", unloaded()), node("b", loading)) == "loading"
    assert status(node("a", loading), node("b", loaded)) == "loaded"
    assert status(node("a", failed)) == "failed"


def test_a_host_without_the_file_is_not_feasible_unless_it_would_fetch_it() -> None:
    def feasible(download: str, *presences: str) -> list[str]:
        profile = Profile(id="m", source="hf:o/r", download=download)  # type: ignore[arg-type]
        nodes = [node(p, unloaded(presence=p)) for p in presences]
        (entry,) = list_models(nodes, Catalogue(models=[profile]), 1)
        return list(entry["feasible_on"])

    assert feasible("never", "present", "downloadable", "missing") == ["present"]
    assert feasible("on_demand", "present", "downloadable", "missing") == ["present", "downloadable"]


def test_how_much_of_a_file_has_come_is_told() -> None:
    (entry, _) = list_models([node("a", unloaded(fetching=0.4))], CATALOGUE, 1)
    assert entry["status"] == {"value": "unloaded", "fetching": 0.4}


def test_a_recovering_model_never_vanishes() -> None:
    assert status(node("a", model_state("m", status="recovering"))) == "recovering"


def test_a_suspect_neuron_still_counts_and_one_that_is_down_does_not() -> None:
    assert status(node("a", model_state("m"), link=LinkState.SUSPECT)) == "loaded"
    down = node("a", model_state("m"), link=LinkState.DOWN)
    (entry, _) = list_models([down], CATALOGUE, 1)
    assert entry["status"]["value"] == "unloaded"
    assert entry["locations"][0]["status"] == "unreachable"
    assert entry["feasible_on"] == []


def test_a_neuron_whose_connection_is_cut_shows_nothing_it_held_but_its_models_stay_listed() -> None:
    cut = node("a", model_state("m"), link=LinkState.SUSPECT)
    cut.is_cut = True
    (entry, _) = list_models([cut], CATALOGUE, 1)
    assert (entry["status"]["value"], entry["locations"][0]["status"]) == ("unloaded", "unreachable")
    assert entry["feasible_on"] == []


def test_a_catalogued_model_is_feasible_where_a_device_is_large_enough() -> None:
    sized = Catalogue(models=[Profile(id="x", source="x", vram_mb=600)])
    small = node("small", devices=[DeviceState(uuid="d", name="d", kind="cpu", state="ready", memory_mb=500)])
    (entry,) = list_models([small, node("large")], sized, 1)
    assert entry["feasible_on"] == ["large"]


def test_what_is_unknown_is_absent_and_never_zero() -> None:
    bare = ModelState(id="x", status="unloaded")
    (entry, *_) = [e for e in list_models([node("a", bare)], CATALOGUE, 1) if e["id"] == "x"]
    assert {"meta", "capabilities", "architecture", "pinned", "aliases"}.isdisjoint(entry)


def test_what_goes_in_and_out_follows_from_what_a_model_can_do() -> None:
    def modalities(*capabilities: str) -> list[str]:
        state = model_state("x", capabilities=list(capabilities), parallel=3)
        entry = next(e for e in list_models([node("a", state)], CATALOGUE, 1) if e["id"] == "x")
        assert entry["meta"]["n_slots"] == 3
        return [*entry["architecture"]["input_modalities"], "→", *entry["architecture"]["output_modalities"]]

    assert modalities("chat", "completion", "tools") == ["text", "→", "text"]
    assert modalities("chat", "vision") == ["text", "image", "→", "text"]
    assert modalities("embeddings") == ["text", "→", "embeddings"]
    assert modalities("rerank") == ["text", "→", "scores"]


def test_health_names_what_does_not_serve() -> None:
    broken = DeviceState(uuid="u1", name="GPU", kind="cuda", state="quarantined", reason="crash loop")
    fine = DeviceState(uuid="u2", name="GPU", kind="cuda", state="ready")
    assert judge_health([node("a")]).status == "ok"
    half = judge_health([node("a", devices=[broken, fine])])
    assert half.status == "impaired"
    assert "crash loop" in half.reasons[0]
    assert judge_health([node("a", devices=[broken])]).status == "degraded"
    assert judge_health([node("a"), node("b", link=LinkState.DOWN)]).status == "impaired"
    assert judge_health([node("b", link=LinkState.DOWN)]).status == "degraded"
    assert judge_health([]).reasons == ["no neuron is configured"]
