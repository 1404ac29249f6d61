"""The `agent` command: RPC only, a verb a file."""
