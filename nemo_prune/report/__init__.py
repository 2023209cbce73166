"""Two models compared, and the report on it for people."""
