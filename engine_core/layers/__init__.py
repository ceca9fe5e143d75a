"""The layers models are built of."""
