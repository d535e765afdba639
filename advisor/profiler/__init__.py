"""Measures the machine, the model and the traffic; makes a Profile."""
