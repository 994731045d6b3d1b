"""Tests on real models, tokenizers and templates are marked `real`, and skipped where these cannot be fetched."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.real import fetch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.real)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """Skip a test whose fixtures cannot be fetched."""
    try:
        yield
    except fetch.UnreachableError as error:
        pytest.skip(f"out of reach: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Skip a test whose inputs cannot be fetched."""
    try:
        yield
    except fetch.UnreachableError as error:
        pytest.skip(f"out of reach: {error}")
