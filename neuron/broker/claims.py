"""The registrar's record: who was first to claim where a model that nobody has is loaded. Pure."""

from collections.abc import Collection

CLAIM_S = 30.0
"""A claim is void after this time: the load it led to has long been seen by every gateway, or there was none."""


class Claims:
    """First claim wins until it is too old, or its neuron is known to be unable.

    A claim outlives the load it led to: a gateway whose view is a moment old must still be sent to where the model is.
    """

    def __init__(self) -> None:
        self._claims: dict[str, tuple[str, float]] = {}

    def record(self, model: str, choice: str, refused: Collection[str], now: float) -> str:
        """Record a claim unless there is a valid one; return the neuron on record."""
        self._claims = {m: c for m, c in self._claims.items() if now - c[1] < CLAIM_S}
        if model not in self._claims or self._claims[model][0] in refused:
            self._claims[model] = (choice, now)
        return self._claims[model][0]
