"""The registrar's record: who was first to claim where a model that nobody has is loaded. Pure."""

CLAIM_S = 30.0
"""A claim that was not followed by a load is void after this time."""


class Claims:
    """First claim wins until it is settled or too old."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[str, float]] = {}

    def record(self, model: str, choice: str, now: float) -> str:
        """Record a claim unless there is one; return the neuron on record."""
        self._claims = {m: c for m, c in self._claims.items() if now - c[1] < CLAIM_S}
        return self._claims.setdefault(model, (choice, now))[0]

    def settle(self, model: str) -> None:
        """Strike a claim out: the model is loaded, or could not be."""
        self._claims.pop(model, None)
