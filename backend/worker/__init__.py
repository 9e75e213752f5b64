"""The compile worker: a process of its own, so that no hook touches the user's process."""
