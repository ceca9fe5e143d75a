"""Load tests and benchmarks: they speak HTTP to a server, and read /proc. Run as modules from the repository root."""
