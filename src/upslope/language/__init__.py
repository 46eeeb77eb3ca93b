"""The language world."""
