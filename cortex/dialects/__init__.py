"""Pure functions between each HTTP dialect and the canonical job and its events."""
