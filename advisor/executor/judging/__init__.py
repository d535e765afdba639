"""What a quantized or trained model has lost against the original, and how fast it is here."""
