"""Attention over spans: each query row sees one half-open interval of keys. See README.md in this folder."""
