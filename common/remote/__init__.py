"""Files behind fsspec URLs (extra [remote]): objects with retries, folders that are whole or absent, a local cache."""
