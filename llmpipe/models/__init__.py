"""Model families and how they look on disk."""
