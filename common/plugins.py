"""What installed packages add to Brine by entry points, without editing it: recipes, formats, filters, metrics.

[project.entry-points."brine.recipes"]
mine = "my_package.recipes:mine"

Nothing is imported before it is asked for by name, so a broken package is no trouble to those who do not use it.
"""

from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any


def plugins(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group such as "brine.recipes"; `load_plugin` imports it."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}


@cache
def installed_version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_plugin(entry: EntryPoint) -> Any:
    """What an entry point names. Raises ValueError that names its package where it cannot be imported."""
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else entry.module
        raise ValueError(
            f"{entry.name!r} of {entry.group} cannot be loaded from the package {package} "
            f"({type(error).__name__}: {error}): repair or uninstall {package}"
        ) from error
