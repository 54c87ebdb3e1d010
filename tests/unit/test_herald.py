"""Who waits is told for what, each thing once."""

from common.messages import Done, Drain, Load, Pause, Progress, Unload, UnloadModel
from tests.support.drive import Drive, cpu, job, profile


def waiting(*, devices: int = 1) -> Drive:
    """A host whose devices hold one of the models each, of which `a` has served and runs two more jobs."""
    drive = Drive(devices=[cpu(f"CPU-{n}", 400) for n in range(devices)], models=[profile(m) for m in "ab"])
    drive.start().connect()
    drive.submit(job("0", "a"))
    drive.finish("0")
    drive.submit(job("1", "a"), job("2", "a"))
    drive.pass_time(1.0)
    return drive


def told(drive: Drive, request: str) -> list[str]:
    return [p.text for p in drive.told_of(Progress) if p.request == request]


def test_a_load_that_waits_for_room_names_who_has_to_go_and_what_he_still_does() -> None:
    drive = waiting()
    drive.holding_back = {UnloadModel}
    drive.peer_says(Load(request="l", model="b"))
    drive.pass_time(2.0)
    drive.finish("1")
    drive.pass_time(2.0)
    drive.finish("2")
    drive.pass_time(2.0)
    assert told(drive, "l") == [
        "b waits for room on CPU-0: a still to end 2 jobs",
        "b waits for room on CPU-0: a still to end 1 job",
        "b waits for room on CPU-0: a being unloaded",
    ]


def test_an_unload_counts_the_jobs_that_still_run() -> None:
    drive = waiting()
    drive.peer_says(Unload(request="u", model="a"))
    drive.pass_time(1.0)
    drive.finish("1")
    drive.pass_time(1.0)
    drive.finish("2")
    drive.pass_time(1.0)
    assert told(drive, "u") == [f"unloading a from CPU-0: {n} still to end" for n in ("2 jobs", "1 job")]
    assert [d.request for d in drive.told_of(Done)] == ["u"]


def test_drains_of_a_node_and_of_a_device_count_their_jobs() -> None:
    drive = waiting(devices=2)
    device = drive.tasks["1"][0]
    drive.peer_says(Pause(request="p", device=device))
    drive.peer_says(Drain(request="n", scope="node"))
    drive.pass_time(1.0)
    for name in "12":
        drive.finish(name)
        drive.pass_time(1.0)
    assert told(drive, "p") == [f"draining {device}: {n} still to end" for n in ("2 jobs", "1 job")]
    assert told(drive, "n") == [f"draining the node: {n} still to end" for n in ("2 jobs", "1 job")]
    assert sorted(d.request for d in drive.told_of(Done)) == ["n", "p"]


def test_a_load_that_waits_for_a_shared_worker_says_whose_jobs_have_to_end() -> None:
    models = [profile("small"), profile("big", vram_mb=600, min_devices=2)]
    drive = Drive(devices=[cpu("CPU-0", 1000), cpu("CPU-1", 1000)], models=models).start().connect()
    drive.submit(job("1", "small"))
    drive.peer_says(Load(request="l", model="big"))
    drive.pass_time(1.0)
    assert told(drive, "l") == ["big waits for CPU-0+CPU-1: 1 job still to end"]
    drive.finish("1")
    assert [d.request for d in drive.told_of(Done)] == ["l"]
