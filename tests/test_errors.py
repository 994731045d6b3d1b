from __future__ import annotations

import pytest

from lightning_opd.errors import (
    ConfigError,
    ConfigTypeError,
    MissingFileError,
    MissingPackageError,
    UnsupportedError,
    class_path_problem,
    closest,
    did_you_mean,
    own_subclasses,
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


@pytest.mark.parametrize(
    ("class_path", "problem"),
    [
        ("torch.optim.AdamW", ""),
        ("torch.optim.AdmW", "`torch.optim` has no `AdmW`. Did you mean `AdamW`?"),
        ("lightning_opd.taks.Strings", "`lightning_opd` has no `taks`. Did you mean `tasks`?"),
        ("no_such_package.Thing", "module `no_such_package` of `no_such_package.Thing` cannot be imported; install it"),
        ("ConfigEror", "there is no class `ConfigEror`. Did you mean `ConfigError`?"),
        ("ConfigError", ""),
    ],
)
def test_a_class_path_that_leads_nowhere_is_explained(class_path: str, problem: str) -> None:
    found = class_path_problem(class_path)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_subclasses_are_found_by_the_name_of_their_base() -> None:
    found = own_subclasses("ConfigError")
    assert {"lightning_opd.errors.ConfigTypeError", "lightning_opd.errors.MissingFileError"} <= set(found)
    assert "lightning_opd.errors.ConfigError" not in found
    assert own_subclasses("NoSuchBase") == []
