"""An outbound mail transfer agent for bulk senders."""

__version__ = "0.1.0"
