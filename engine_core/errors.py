"""What the engine cannot go on with.

    CannotBoot     the operator must change something: one line, exit code 3, not retried

A lost device is whatever was raised then: `has_lost_device`. One request's failure is not an exception: it is a
`StepResult.failures` entry or a `Failure` in the outbox.
"""


class CannotBoot(Exception):
    """This engine can never become ready as configured. The message is one line: what is wrong and what to do."""


def has_lost_device(error: Exception) -> bool:
    """Whether this is an error of CUDA's that stays with the process: every later call fails too, and only a new process
    gets the device back. torch.AcceleratorError, or a RuntimeError of torch's or Triton's that says so; not one for
    want of memory."""
    text = str(error)
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "Triton Error [CUDA]" in text
