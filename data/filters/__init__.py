"""Filters: which documents of an encoded corpus are worth training on, decided pass by pass and undone at will."""
