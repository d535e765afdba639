"""From a model's files and prompts to a quantized checkpoint, and back into the model that it will be."""
