"""What keeps a large output in order: who works on it, how far it is, whether it is whole, and what to make again."""
