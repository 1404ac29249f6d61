"""Conversations in a worker: an actor each. Imported only where an agent has an `on_message`."""
