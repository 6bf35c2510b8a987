"""The filters that a command line and a recipe can name; importing this costs nothing."""

FILTERS = ("exact_duplicates", "near_duplicates", "text_quality", "media_quality")
"""In the order in which they are best applied: what is dropped early need not be measured later."""
