"""Benchmarks of single parts, inside one process: no sockets, no other process, CPU time only."""
