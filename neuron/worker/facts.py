"""`python -m neuron.worker.facts KIND`: print what llama.cpp was built for and which devices it sees, as JSON."""

import sys

import msgspec

from neuron.worker.llama_engine import LlamaEngine

if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(msgspec.to_builtins(LlamaEngine(1, sys.argv[1]).facts())))
