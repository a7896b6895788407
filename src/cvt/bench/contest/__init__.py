"""Networks trained side by side on the same data, and what came of it."""
