"""Rewrites that every program needs."""
