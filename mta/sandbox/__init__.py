"""A small Internet on loopback: a DNS server and MX hosts whose behaviour comes from a file. See docs/sandbox.md."""
