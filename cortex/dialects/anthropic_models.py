"""The models in the shape of Anthropic's list."""

from datetime import UTC, datetime
from typing import Any


def anthropic_list(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all of them as one page."""
    data = [anthropic_entry(entry) for entry in entries]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def anthropic_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return one of them."""
    created = datetime.fromtimestamp(entry["created"], UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": created,
        "max_input_tokens": entry.get("meta", {}).get("n_ctx"),
        "lifecycle": "active",
    }
