"""Operators that Inductor has no generated code for, as formulas of operators that it has."""
