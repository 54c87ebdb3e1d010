"""The fleet's command line: what `cortex` does besides serving. Needs neither gunicorn nor llama.cpp."""
