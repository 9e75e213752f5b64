"""One rule per operator family whose support depends on arguments, and the table of them all."""
