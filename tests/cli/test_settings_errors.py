from __future__ import annotations

import lightning.pytorch as pl
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_opd.cli.errors import settings_message
from lightning_opd.errors import ConfigError, MissingFileError


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """Return an error as it is after it was raised."""
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


@pytest.mark.parametrize(
    "error", [ConfigError("the text"), MissingFileError("the text"), MisconfigurationException("the text")]
)
def test_wrong_settings_have_a_message(error: Exception) -> None:
    assert settings_message(raised(error)) == "the text"
    assert settings_message(raised(TypeError("the parser's own"), cause=error)) == "the text"


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), FileNotFoundError("a bug"), KeyError("x")])
def test_a_crash_has_none(error: Exception) -> None:
    assert settings_message(raised(error)) is None


def test_what_lightning_refuses_has_a_message() -> None:
    with pytest.raises(ValueError, match="ddpp") as caught:
        pl.Trainer(strategy="ddpp", logger=False, enable_checkpointing=False)
    assert "ddpp" in str(settings_message(caught.value))
