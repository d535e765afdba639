"""Judges a Profile by the rules and plans what to do."""
