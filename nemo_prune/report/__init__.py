"""Two models compared, and what people are told of it."""
