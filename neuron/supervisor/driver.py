"""What the driver tells, what that means, and what is done about it: the one table. Pure.

| scope | whose fault | what is done |
|---|---|---|
| request | what was computed: a bad access, an endless kernel | noted: the worker's death, which follows, is judged |
| device | this GPU | renew: a new worker; quarantine: the GPU is left alone until the cool-down, and its models move |
| host | the driver itself | noted, and said by every health answer; nothing it has told counts any more |
"""

from dataclasses import dataclass
from typing import Literal

Scope = Literal["request", "device", "host"]
Action = Literal["note", "renew", "quarantine"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One row."""

    scope: Scope
    action: Action
    text: str


def _request(text: str) -> Judgement:
    return Judgement("request", "note", text)


def _note(text: str) -> Judgement:
    return Judgement("device", "note", text)


def _quarantine(text: str) -> Judgement:
    return Judgement("device", "quarantine", text)


DOUBLE_BIT_ECC = 48
FALLEN_OFF = 79
XIDS: dict[int, Judgement] = {
    8: _request("a kernel did not end in time"),
    13: _request("an access that the graphics engine refused"),
    31: _request("a memory page fault"),
    43: _request("the GPU stopped a channel for an error in what was computed"),
    45: _request("the remains of a process that was ended"),
    69: _request("an invalid class of the graphics engine"),
    32: Judgement("device", "renew", "a corrupt push buffer"),
    38: Judgement("device", "renew", "an error in the driver's firmware"),
    94: Judgement("device", "renew", "an ECC error that took only this process's data"),
    109: Judgement("device", "renew", "a context switch did not end"),
    DOUBLE_BIT_ECC: _quarantine("memory with an ECC error that cannot be corrected; try: nvidia-smi --gpu-reset"),
    46: _quarantine("the GPU stopped computing; try: nvidia-smi --gpu-reset"),
    61: _quarantine("the GPU's microcontroller stopped; try: nvidia-smi --gpu-reset"),
    62: _quarantine("the GPU's microcontroller halted; try: nvidia-smi --gpu-reset"),
    63: _note("a row of memory is to be remapped; reset the GPU when it is convenient"),
    64: _quarantine("a bad row of memory could not be remapped; reset the GPU, and have it replaced if that repeats"),
    74: _quarantine("an NVLink error; look at: nvidia-smi nvlink --status"),
    FALLEN_OFF: _quarantine("it has fallen off the bus; reboot, and look at power and seating"),
    92: _note("many ECC errors that could be corrected"),
    95: _quarantine("an ECC error that may have hit other processes' data; try: nvidia-smi --gpu-reset"),
    119: _quarantine("the GPU's system processor does not answer; reboot"),
    120: _quarantine("the GPU's system processor failed; reboot"),
    140: _quarantine("an ECC error that was not recovered; try: nvidia-smi --gpu-reset"),
    143: _quarantine("the GPU could not be initialised; reboot"),
}
"""NVIDIA's documented errors that concern computing. Others, of displays or of video, are noted."""

LOST = _quarantine("the driver does not list it any more: it may have fallen off the bus; look at dmesg, reboot")


def judge(xid: int) -> Judgement:
    """Return what an Xid means."""
    return XIDS.get(xid, _note("unknown here; NVIDIA's list of Xid errors may tell"))


def judge_failure(error: str) -> Judgement:
    """Return what it means that NVML answers with an error."""
    return Judgement("host", "note", error)


MUTE = "NVML tells nothing any more; try: nvidia-smi"
SILENT = Judgement("host", "note", "the driver does not answer: NVML has been silent for too long; try: nvidia-smi")
