"""N-gram language models: reading and scoring them, and training them from text."""
