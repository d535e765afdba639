"""What the rules may want done when a gate is missed: one file a remedy, called by the loop."""
