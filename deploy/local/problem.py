"""What a person can put right."""


class StackProblem(Exception):
    """Its text is one sentence for the person at the terminal; the command line prints it without a traceback."""
