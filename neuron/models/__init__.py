"""Model files on this host: their headers, where they lie, and how they get here. Never imports llama.cpp."""
