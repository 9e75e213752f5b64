"""A byte-level decoder that has learned some of Shakespeare's sonnets by heart."""
