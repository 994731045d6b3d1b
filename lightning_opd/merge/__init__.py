"""The plan of a merge, made from a base, its experts and prompts, and the recipe that carries it out."""
