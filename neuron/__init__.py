"""One GPU host: a supervisor without a CUDA context, and the processes it owns."""
