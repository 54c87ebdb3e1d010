"""What programs that are none of ours hold of the GPUs, by the driver's own list: no model is to be given that."""

from neuron.discovery import Gpu, ProbeReading
from neuron.supervisor.host import Host

TELLING_MB = 256
"""A change by so much is worth a line in the log."""


def note(host: Host, reading: ProbeReading) -> None:
    """Take what a reading tells, for the loads that come after it. `reserve_mb` is there for others, so it counts."""
    ours = {w.pid for w in host.workers.values() if w.pid is not None}
    for gpu in reading.devices:
        for device in host.devices.values():
            if device.kind != "cuda" or device.visible != gpu.uuid:
                continue
            before = host.ledger.offered_mb(device.uuid)
            memory_mb = max(0, _held_by_others_mb(gpu, ours) - device.reserve_mb)
            if host.ledger.note_foreign(device.uuid, memory_mb):
                after = host.ledger.offered_mb(device.uuid)
                if before is not None and after is not None and abs(after - before) >= TELLING_MB:
                    host.say("info", "other programs use the device", device=device.uuid, memory_mb=memory_mb)


def _held_by_others_mb(gpu: Gpu, ours: set[int]) -> int:
    if gpu.are_strangers:
        return 0
    return sum(mb for pid, mb in gpu.processes.items() if pid not in ours)
