"""Recipes: ordered steps with their variables, fingerprints and markers; the command `run` carries them out."""
