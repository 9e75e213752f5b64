"""What rewrites share."""
