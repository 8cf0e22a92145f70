"""One conversation with a model, at a terminal or in a browser."""
