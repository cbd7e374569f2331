"""Text as arrays, shared by clean and dedup: code points, tokens, hashes of tokens, n-grams and lines."""
