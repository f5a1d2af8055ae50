"""The one class of errors that are meant for a person."""


class UserError(ValueError):
    """Something the user asked for cannot be done, with the way out.

    The message has three parts: what was *got*, what was *wanted*, and the override or action that *repairs* it.
    The commands print it without a traceback and end with exit code 2.
    """

    def __init__(self, got: str, wanted: str, fix: str):
        super().__init__(f"{got}\n  wanted: {wanted}\n  try:    {fix}")
        self.got, self.wanted, self.fix = got, wanted, fix

    def __reduce__(self):
        return type(self), (self.got, self.wanted, self.fix)
