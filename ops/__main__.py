"""`python -m ops` is `tokenfleet`."""

from ops.cli import main

main()
