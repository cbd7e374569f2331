"""Add changed copies of documents or labelled rows to the training data, marked as such."""
