"""Models that think before they answer: where their reasoning begins and ends."""
