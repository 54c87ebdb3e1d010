"""What the ledger has free of the host's memory is shared by the workers that run, for idle conversations."""

from common.messages import Load, ShareHostMemory
from neuron.memory.ledger import HOST
from neuron.settings import NeuronSettings
from tests.support.drive import Drive, cpu, profile


def start(*, cache_mb: int | None = None) -> Drive:
    settings = NeuronSettings(name="test", host_memory_mb=800, host_cache_mb=cache_mb, idle_exit_s=5.0)
    models = [profile("a"), profile("b")]
    return Drive(devices=[cpu("CPU-0", 1000), cpu("CPU-1", 1000)], models=models, settings=settings).start().connect()


def share(drive: Drive, device: str) -> int:
    """Return what a worker was told last."""
    return drive.sent_to(device, ShareHostMemory)[-1].mb


def test_the_workers_that_run_share_all_there_is() -> None:
    drive = start()
    assert (share(drive, "CPU-0"), share(drive, "CPU-1")) == (400, 400)
    drive.peer_says(Load(request="1", model="a", device="CPU-0"))
    drive.pass_time(7.0)
    assert drive.machine.host.workers["CPU-1"].state == "idle"
    assert share(drive, "CPU-0") == 800
    drive.peer_says(Load(request="2", model="b", device="CPU-1"))
    assert (share(drive, "CPU-0"), share(drive, "CPU-1")) == (400, 400)


def test_what_is_promised_to_a_model_is_shared_no_more() -> None:
    drive = start()
    drive.machine.host.ledger.reserve(HOST, "a", 300)
    drive.pass_time(0.5)
    assert (share(drive, "CPU-0"), share(drive, "CPU-1")) == (250, 250)
    drive.machine.host.ledger.release(HOST, "a")
    drive.pass_time(0.5)
    assert share(drive, "CPU-0") == 400


def test_a_worker_that_is_restarted_keeps_its_share_of_the_others() -> None:
    drive = start()
    told = len(drive.sent_to("CPU-1", ShareHostMemory))
    drive.die("CPU-0")
    drive.pass_time(1.0)
    assert len(drive.sent_to("CPU-1", ShareHostMemory)) == told
    assert share(drive, "CPU-0") == 400


def test_conversations_get_no_more_than_their_own_limit() -> None:
    drive = start(cache_mb=100)
    assert share(drive, "CPU-0") == 50


def test_one_worker_of_several_devices_has_one_share() -> None:
    models = [profile("big", vram_mb=600, min_devices=2)]
    settings = NeuronSettings(name="test", host_memory_mb=800)
    drive = Drive(devices=[cpu("CPU-0", 1000), cpu("CPU-1", 1000)], models=models, settings=settings).start().connect()
    drive.peer_says(Load(request="1", model="big"))
    assert share(drive, "CPU-0") == 800
