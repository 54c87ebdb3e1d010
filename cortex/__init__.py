"""The gateway: HTTP dialects on one side, the bus to every neuron on the other."""
