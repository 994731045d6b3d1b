from __future__ import annotations

import pytest

from lightning_opd.errors import (
    ConfigError,
    ConfigTypeError,
    MissingFileError,
    MissingPackageError,
    UnsupportedError,
    closest,
    did_you_mean,
)


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [
        (ConfigError, ValueError),
        (ConfigTypeError, TypeError),
        (MissingFileError, FileNotFoundError),
        (MissingPackageError, ImportError),
        (UnsupportedError, NotImplementedError),
    ],
)
def test_every_settings_error_is_one_class_and_a_built_in_one(
    kind: type[ConfigError], built_in: type[Exception]
) -> None:
    assert issubclass(kind, ConfigError)
    with pytest.raises(built_in, match="the text"):
        raise kind("the text")


def test_a_word_that_is_close_to_nothing_gets_no_suggestion() -> None:
    assert closest("zzz", ["fit", "test"]) is None
    assert did_you_mean("zzz", ["fit", "test"]) == ""
    assert did_you_mean("vlidate", ["fit", "validate"]) == " Did you mean `validate`?"
