"""The local page over an output: search, filters, splats that turn, failures. It reads the output and never writes."""
