"""Benchmarks of the engine on a GPU. Each runs on a bare machine: no network, no weights, no browser."""
