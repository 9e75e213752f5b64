"""Graph passes: each rewrites the delegated program before it is compiled."""
