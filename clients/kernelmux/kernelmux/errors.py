"""The error that ends a command."""

from __future__ import annotations


class KernelmuxError(Exception):
    """A command cannot do what it was asked for. The text is a sentence for the user, without a final period."""
