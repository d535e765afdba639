"""What a run did, what it spent, what it says while it works."""
