"""Running the fleet: the command line, the supervisor and the tools of an operator. Imports every role; nobody imports it."""
