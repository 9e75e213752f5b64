"""Configurations of the products of few rows: candidates, measured tables, selection, tuning."""
