"""What crosses a process boundary: messages, sockets, configuration, errors, logging.

Imported by cortex and neuron, imports neither; pure Python, no llama.cpp, no gunicorn.
"""

__version__ = "0.1.0"
