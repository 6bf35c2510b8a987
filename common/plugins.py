"""Recipes, formats and metrics of installed packages, by entry points, without editing Brine.

[project.entry-points."brine.recipes"]
mine = "my_package.recipes:mine"
"""

from importlib.metadata import EntryPoint, entry_points


def plugins(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group such as "brine.recipes"; `load()` of one imports it."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}
