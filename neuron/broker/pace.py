"""How fast models serve, as measured here, and the waits that follow from it. Pure."""

NEWEST = 0.2
"""Weight of the latest measurement in a moving average."""
UNKNOWN_S = 1.0
"""Taken where nothing was measured yet."""
LEAST_MS = 1000
"""Nobody is asked to come back sooner: HTTP tells whole seconds."""


class Pace:
    """Moving averages by model."""

    def __init__(self) -> None:
        self._service_s: dict[str, float] = {}
        self._load_s: dict[str, float] = {}

    def note_service(self, model: str, held_s: float) -> None:
        """Record how long a job held its slot."""
        self._note(self._service_s, model, held_s)

    def note_load(self, model: str, load_s: float) -> None:
        """Record how long a load took."""
        self._note(self._load_s, model, load_s)

    def _note(self, averages: dict[str, float], model: str, seconds: float) -> None:
        averages[model] = (1 - NEWEST) * averages.get(model, seconds) + NEWEST * seconds

    def service_ms(self, model: str) -> int | None:
        """Return how long a job of the model holds its slot; None: none has ended yet."""
        return round(self._service_s[model] * 1000) if model in self._service_s else None

    def queue_wait_ms(self, model: str, waiting: int, slots: int, *, is_loaded: bool) -> int:
        """Return after what time so many waiting jobs will have got their slots."""
        wait_s = self._service_s.get(model, UNKNOWN_S) * waiting / max(1, slots)
        if not is_loaded:
            wait_s += self._load_s.get(model, UNKNOWN_S)
        return max(LEAST_MS, round(wait_s * 1000))

    def room_wait_ms(self, model: str, others: list[str]) -> int:
        """Return after what time a model may find room that the running jobs of `others` keep it from."""
        busy_s = max((self._service_s.get(m, UNKNOWN_S) for m in others), default=0.0)
        return max(LEAST_MS, round((busy_s + self._load_s.get(model, UNKNOWN_S)) * 1000))
