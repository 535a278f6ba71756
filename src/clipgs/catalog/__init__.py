"""Which objects there are: append-only, in frozen shards."""
