"""Tables to documents: Parquet, CSV and TSV with media columns, lists of words."""
