"""When a child that died comes back. Data and one function; no clock."""

from dataclasses import dataclass

from neuron.settings import RestartSettings


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The first restart is immediate; only deaths in a row, without a completed step between them, slow it down."""

    backoff_s: float
    backoff_max_s: float
    quarantine_after: int
    cool_down_s: float

    @classmethod
    def of(cls, settings: RestartSettings) -> "RestartPolicy":
        """Take the policy from the configuration."""
        return cls(settings.backoff_s, settings.backoff_max_s, settings.quarantine_after, settings.cool_down_s)

    def delay_s(self, deaths_in_row: int) -> float | None:
        """Return the wait before the next start in seconds, or None: quarantine."""
        if deaths_in_row >= self.quarantine_after:
            return None
        if deaths_in_row <= 1:
            return 0.0
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** (deaths_in_row - 2))
