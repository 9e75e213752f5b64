"""Operators that Inductor would hand to a library, in terms of those that it generates or that the runtime has."""
