"""What every process with an event loop needs of it: turns that do not become long, threads for what would block."""
