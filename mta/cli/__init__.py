"""The `mta` command."""


def main() -> int:
    """Run the command line."""
    return 64
