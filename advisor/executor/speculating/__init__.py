"""Drafts: looked up, given or made; how often they are accepted, and the proof that nothing else changes."""
