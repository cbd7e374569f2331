"""Train a language model from scratch."""
