"""How bytes look on disk: documents, tokens, manifests. The single place for I/O."""
