"""The model bundles that come with ccdstream, and which bundle a user means by a word.

Each is a folder of `models/`, package data: the paths hold in a checkout and in a wheel. One that
is named here need not be there: then a line says so, and everything else works.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ccdstream.errors import BundleError, show_path

MANIFEST = "manifest.json"
"""What makes a folder a bundle."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A bundle of the package, whether it is there or not."""

    name: str
    purpose: str
    speed: str
    """What it is made for, not a measurement."""

    @property
    def path(self) -> Path:
        """Its folder."""
        return models_folder() / self.name

    @property
    def shipped(self) -> bool:
        """Whether this installation has it."""
        return self.path.is_dir()


@dataclass(frozen=True, slots=True)
class Found:
    """The bundle that a user means."""

    path: Path
    note: str = ""
    """Which of two of that name was taken, in words; empty where there was only one."""


DEFAULT = Packaged("default", "first use, and machines without a GPU", "light")
REFERENCE = Packaged("reference", "GPUs, or recordings that may take their time", "heavy")
PACKAGED = (DEFAULT, REFERENCE)


def models_folder() -> Path:
    """Where the bundles of the package lie."""
    return Path(__file__).parent / "models"


def find_model(given: str | None) -> Found:
    """Which bundle `--model GIVEN` means. Whether it is whole is for `load_bundle` to say.

    A bundle at the path `given` comes first, then one of the package by its name. So a folder of
    one's own is never passed over for the package's; where both are there, the note says which was
    taken, as it does where a folder of that name is no bundle.

    Args:
        given: a folder, or a name of `PACKAGED`; None for the default bundle.

    Raises:
        BundleError: it names neither a path that is there nor a bundle of this package.
    """
    if given is None:
        return Found(_shipped(DEFAULT))
    path = Path(given)
    named = {bundle.name: bundle for bundle in PACKAGED}.get(given)
    try:
        there, is_bundle = os.path.lexists(path), (path / MANIFEST).is_file()
    except OSError:  # a path that no system takes; reading it says why
        return Found(path)
    if named is None:
        if there or path.name != given:
            return Found(path)
        raise BundleError(
            f"no bundle at {path}. Name a folder, or a bundle of the package: {_names(PACKAGED)}; "
            "or train one: ccdstream train."
        )
    if is_bundle:
        return Found(
            path,
            f"{given} is the folder {show_path(path.absolute())}, not the package's bundle of that "
            "name",
        )
    note = f"{given} is the package's bundle; what is called so here is none" if there else ""
    return Found(_shipped(named), note)


def _shipped(bundle: Packaged) -> Path:
    if bundle.shipped:
        return bundle.path
    others = " or ".join(other.name for other in PACKAGED if other.shipped)
    raise BundleError(
        f"the {bundle.name} model is missing: expected it at {bundle.path}. "
        + (f"Name {others}, or a" if others else "Install ccdstream again, or name a")
        + " bundle's folder, instead."
    )


def _names(bundles: Iterable[Packaged]) -> str:
    return ", ".join(bundle.name + ("" if bundle.shipped else " (missing)") for bundle in bundles)
