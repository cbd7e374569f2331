"""Repair text, drop what is not worth training on, redact personal data."""
