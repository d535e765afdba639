"""A result sealed, and sent to a place beyond this machine whole or not at all."""
