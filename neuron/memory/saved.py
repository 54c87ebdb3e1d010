"""What a neuron remembers over a restart. Pure data; neuron.state_file reads and writes it."""

import msgspec

from common.catalogue import Profile

VERSION = 1


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model that was loaded."""

    profile: Profile
    device: str
    found: bool = False
    """Whether nobody describes it: the profile was made up for its file."""


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The content of state.json. All of it is a help; none of it is needed."""

    version: int = VERSION
    corrections: dict[str, int] = {}
    """By fingerprint and device: measured less estimated MiB."""
    pauses: dict[str, float | None] = {}
    """By device: when the pause ends, seconds since the epoch; None: when an admin ends it."""
    quarantines: dict[str, str] = {}
    """By device: why."""
    pins: dict[str, bool] = {}
    """By model: what an admin has said, against its profile."""
    resident: list[Resident] = []
    """Pinned ones first, then the most recently used."""
    preload: list[Profile] = []
    """What gateways have said of models that are to be loaded at every start."""
