"""Models that are no part of the tests' registry: many kinds, small and random."""
