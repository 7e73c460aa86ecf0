"""The one exception for wrong input, which the command line prints as a line and a hint instead of a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave can't be used.

    Args:
        message: Names the parameter or file, what is allowed and what came.
        hint: What to do about it; printed on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\nhint: {self.hint}" if self.hint else message


class HubError(InputError, OSError):
    """The hub could not be reached, or does not have what was asked for."""


class MissingPackageError(InputError, ImportError):
    """An optional library is not installed.

    Args:
        package: The library, as it is imported.
        extra: The extra of ``llm-roadmap`` that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"This needs the package {package!r}.", hint=f'pip install "llm-roadmap[{extra}]"')
