"""Train a tokenizer, and turn documents into token shards."""
