"""Recipes: ordered steps from nothing to a report, each of which also works alone."""
