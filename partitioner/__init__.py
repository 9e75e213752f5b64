"""Which nodes the delegate claims and, for each it does not, why."""
