"""What rewrites share: calls, metadata, branches, constants of a program, symbols, operators of the Edge dialect."""
