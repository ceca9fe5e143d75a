"""The peers' features, and a probe for each: which of them a running fleet has."""
