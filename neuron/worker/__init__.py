"""The process that owns one device: the engine loop and llama.cpp below it."""
