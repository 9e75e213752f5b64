"""From a delegated graph to the bytes the runtime executes: options, target, compile, constants, blob."""
