"""Proofs about a graph. Each proves what it says or says why not, in doubt not; none changes anything."""
