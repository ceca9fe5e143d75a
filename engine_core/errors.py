"""What the engine cannot go on with.

    CannotBoot     the operator must change something: one line, exit code 3, not retried

One request's failure is not an exception: it is a `StepResult.failures` entry or a `Failure` in the outbox.
"""


class CannotBoot(Exception):
    """This engine can never become ready as configured. The message is one line: what is wrong and what to do."""
