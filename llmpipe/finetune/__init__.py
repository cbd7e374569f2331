"""Train a model for a task on labelled rows."""
