"""Configurations of the products: candidates, measured tables, selection, tuning."""
