"""How much a model is to think, as chat templates are told: each family reads another of these names."""

from typing import Any, Literal

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def effort_arguments(effort: str | None) -> dict[str, Any]:
    """Return the template's arguments for an effort; none for None."""
    if effort is None:
        return {}
    if effort == "none":
        return thinking_arguments(is_on=False)
    return {**thinking_arguments(is_on=True), "reasoning_effort": effort}


def thinking_arguments(*, is_on: bool) -> dict[str, Any]:
    """Return the template's arguments that switch thinking."""
    return {"enable_thinking": is_on, "thinking": is_on}
