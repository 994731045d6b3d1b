"""Collects the seeds of recipes/merge_agents into its results.json, and writes its README's table."""

from __future__ import annotations

from tests.benchmarks.merge_tiny import collect_recipe

if __name__ == "__main__":
    collect_recipe("merge_agents")
