"""What carries a plan out: serving files, checkpoints, training, measurement."""
