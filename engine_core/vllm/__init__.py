"""vLLM's V1 engine cores behind our broker and rings: the same contract to the fleet as the engines `core` and `sim`."""
