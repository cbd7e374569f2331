"""Score models, compare scores, continue prompts."""
