"""Collect web sites politely into documents."""
