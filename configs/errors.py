"""The one class of errors that are meant for a person."""

import unicodedata

LONGEST_ERROR = 4000
"""Letters of one part of a message: what a stranger's file says may be of any length."""


class UserError(ValueError):
    """Something the user asked for cannot be done, with the way out.

    The message has three parts: what was *got*, what was *wanted*, and the override or action that *repairs* it.
    The commands print it without a traceback and end with exit code 2.
    """

    def __init__(self, got: str, wanted: str, fix: str):
        got, wanted, fix = (escape(part if len(part) <= LONGEST_ERROR else f"{part[:LONGEST_ERROR]} ...")
                            for part in (got, wanted, fix))
        super().__init__(f"{got}\n  wanted: {wanted}\n  try:    {fix}")
        self.got, self.wanted, self.fix = got, wanted, fix

    def __reduce__(self):
        return type(self), (self.got, self.wanted, self.fix)


def escape(text: str) -> str:
    """The text with what a terminal would obey written out (``\\x1b[2J``), but for line ends and tabs: file names and
    what stands in files may hold anything."""
    return "".join(letter if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
                   else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text)
