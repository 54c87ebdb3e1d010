"""What outlives a restart of the neuron."""

import json
from pathlib import Path

import pytest

from common.messages import Load, Pause, Pin, Unload, Unpin
from neuron.memory.saved import Resident, Saved
from neuron.state_file import read_state, write_state
from neuron.supervisor import events
from neuron.supervisor.instructions import Instruction, SaveState
from neuron.supervisor.states import State
from tests.support.drive import Drive, cpu, job, profile


class Kept(Drive):
    """A drive that notes what is to be written."""

    saved: Saved | None = None

    def _carry_out(self, instruction: Instruction) -> list[events.Event]:
        if isinstance(instruction, SaveState):
            self.saved = instruction.saved
        return super()._carry_out(instruction)


def started(saved: Saved | None = None, wall_s: float = 5000.0, models: str = "abc") -> Kept:
    drive = Kept(devices=[cpu("CPU-0", 700), cpu("CPU-1", 400)], models=[profile(m) for m in models])
    drive.feed(events.Started(saved, wall_s))
    drive.connect()
    return drive


def state_of(drive: Drive) -> State:
    return drive.machine.host.workers["CPU-0"].state


def where(drive: Drive) -> dict[str, list[str]]:
    return {m.id: sorted(m.replicas) for m in drive.machine.host.models.values() if m.replicas}


def test_what_was_loaded_is_loaded_again_where_it_was_also_from_a_gateways_profile() -> None:
    before = started(models="")
    for model, device in (("a", "CPU-1"), ("b", "CPU-0"), ("c", "CPU-0")):
        before.peer_says(Load(request=model, model=model, device=device, profile=profile(model)))
    before.peer_says(Unload(request="u", model="b"))
    before.pass_time(2.0)
    assert before.saved is not None
    after = started(before.saved, models="")
    assert where(after) == {"a": ["CPU-1"], "c": ["CPU-0"]}
    assert all(m.status == "loaded" for m in after.machine.host.models.values())


def test_pinned_models_come_first_where_not_all_fit_any_more() -> None:
    rows = [Resident(profile=profile(m), device="CPU-1") for m in "abc"]
    before = started(Saved(resident=rows[:1]))
    before.peer_says(Pin(request="p", model="a"))
    before.peer_says(Load(request="b", model="b", device="CPU-0"))
    before.pass_time(2.0)
    assert before.saved is not None
    assert [r.profile.id for r in before.saved.resident] == ["a", "b"]
    assert before.saved.pins == {"a": True}
    after = started(before.saved)
    assert after.machine.host.models["a"].pinned


def test_a_stop_does_not_forget_what_was_loaded() -> None:
    drive = started()
    drive.peer_says(Load(request="l", model="a"))
    drive.feed(events.StopAsked())
    assert set(drive.exits) == {0}
    drive.pass_time(5.0)
    assert drive.saved is not None
    assert [r.profile.id for r in drive.saved.resident] == ["a"]


def test_a_pause_goes_on_for_the_rest_of_its_time() -> None:
    before = started()
    before.peer_says(Load(request="l", model="a", device="CPU-1"))
    before.peer_says(Pause(request="p", device="CPU-1", for_s=100.0))
    before.pass_time(2.0)
    assert before.saved is not None
    after = started(before.saved, wall_s=5060.0)
    assert "CPU-1" not in [s.name for s in after.alive.values()]
    assert where(after) == {}
    after.pass_time(35.0)
    assert after.machine.host.workers["CPU-1"].state is State.STOPPED
    after.pass_time(10.0)
    assert where(after) == {"a": ["CPU-1"]}
    later = started(before.saved, wall_s=6000.0)
    assert later.machine.host.workers["CPU-1"].state is State.READY


def test_a_quarantine_goes_on_and_is_tried_after_the_cool_down() -> None:
    drive = started(Saved(quarantines={"CPU-0": "5 deaths in a row"}))
    assert state_of(drive) is State.QUARANTINED
    assert "5 deaths" in (drive.machine.host.why_not("CPU-0") or "")
    drive.submit(job("1", "a"))
    assert drive.tasks["1"][0] == "CPU-1"
    drive.pass_time(301.0)
    assert state_of(drive) is State.READY


def test_a_quarantine_for_want_of_an_engine_ends_with_the_neuron_since_another_may_be_installed_by_then() -> None:
    drive = started()
    for _ in range(5):
        drive.die("CPU-0", "status 78")
        drive.pass_time(20.0)
    assert state_of(drive) is State.QUARANTINED
    assert "status 78" in (drive.machine.host.why_not("CPU-0") or "")
    drive.peer_says(Pin(request="p", model="a"))
    drive.pass_time(2.0)
    assert drive.saved is not None
    assert drive.saved.quarantines == {}


def test_a_device_that_is_gone_leaves_its_models_to_the_others() -> None:
    drive = started(Saved(resident=[Resident(profile=profile("a"), device="CPU-9")], pauses={"CPU-8": None}))
    assert len(where(drive)["a"]) == 1
    assert drive.machine.host.paused == {}


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    saved = Saved(corrections={"f@d": -3}, pauses={"d": None}, resident=[Resident(profile=profile("a"), device="d")])
    write_state(tmp_path / "new" / "state.json", saved)
    assert read_state(tmp_path / "new" / "state.json") == saved
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["state.json"]
    assert read_state(tmp_path / "none.json") is None


@pytest.mark.parametrize("content", ["{", '{"version": 99}', '{"resident": 3}', "\xff"])
def test_a_file_that_cannot_be_used_is_kept_aside(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content, encoding="latin-1")
    assert read_state(path) is None
    assert path.with_suffix(".unusable").exists()
    write_state(path, Saved())
    assert read_state(path) == Saved()


def test_what_a_newer_neuron_has_added_to_the_file_outlives_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"version": 1, "pins": {"a": true}, "later": {"x": [1, 2]}}')
    saved = read_state(path)
    assert saved is not None
    assert saved.pins == {"a": True}
    write_state(path, Saved(pins={"b": True}))
    assert json.loads(path.read_text()) | {"corrections": {}} == {
        "version": 1, "pins": {"b": True}, "later": {"x": [1, 2]},
        "corrections": {}, "pauses": {}, "quarantines": {}, "resident": [], "preload": [],
    }  # fmt: skip
    assert read_state(path) == Saved(pins={"b": True})


def test_a_model_that_only_a_newer_neuron_can_load_costs_nothing_of_the_rest_and_stays_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    saved = Saved(pins={"a": True}, resident=[Resident(profile=profile("a"), device="d")])
    write_state(path, saved)
    content = json.loads(path.read_text())
    newer = {"profile": {"id": "b", "source": "b.gguf", "later": 1}, "device": "d"}
    path.write_text(json.dumps(content | {"resident": [newer, *content["resident"]]}))
    assert read_state(path) == saved
    [said] = caplog.messages
    assert "`later`" in said
    write_state(path, Saved())
    assert json.loads(path.read_text())["resident"] == [newer]


def test_a_pin_waits_for_its_model_to_be_found_and_is_not_forgotten_meanwhile() -> None:
    drive = started(Saved(pins={"z": True, "y": True}), models="a")
    drive.peer_says(Load(request="l", model="a"))
    drive.pass_time(2.0)
    assert drive.saved is not None
    assert drive.saved.pins == {"z": True, "y": True}
    drive.peer_says(Load(request="z", model="z", profile=profile("z")))
    drive.pass_time(2.0)
    assert drive.machine.host.models["z"].pinned
    assert drive.saved.pins == {"z": True, "y": True}
    drive.peer_says(Unpin(request="u", model="z"))
    drive.pass_time(2.0)
    assert drive.saved.pins == {"y": True}
