"""What an exit code of ours means."""

OK = 0
FAILED = 1  # something went wrong while serving
MISUSED = 2  # the command line or the configuration
CANNOT_BOOT = 3  # a role that needs the operator: do not restart it
INTERRUPTED = 130  # told to stop at once: a second signal, or Ctrl-C before there was anything to drain
