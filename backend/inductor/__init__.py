"""Everything that touches private API of Inductor and Triton, so that a torch upgrade breaks in one place.

Nothing here may be called outside the compile worker: the hooks are process-wide.
"""
