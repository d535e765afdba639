"""What a deployment costs and gives: memory, step time, batching, speculation, accuracy."""
