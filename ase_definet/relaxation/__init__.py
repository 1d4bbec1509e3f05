"""From a structure to its relaxed geometry: inputs of the network, the relaxer, steps of a calculator."""
