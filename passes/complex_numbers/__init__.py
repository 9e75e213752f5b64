"""Complex numbers as pairs of real ones, in programs whose inputs and outputs are real."""
