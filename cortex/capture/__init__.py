"""Whole requests on disk, prompts and answers included, to find out why an answer was what it was. Opt-in."""
