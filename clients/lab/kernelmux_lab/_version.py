"""The version of the wheel, of the server extension and of the lab extension."""

__version__ = "0.1.0"
