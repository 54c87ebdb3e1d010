"""neuronctl: the admin tool of one neuron."""
