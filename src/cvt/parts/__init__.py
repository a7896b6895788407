"""The vocabulary: small parts that the rows of `cvt.systems` are spelled with, one idea a file.

Between layers travels `(tokens, grid, num_prefix)`: tokens `(B, num_prefix + H*W, C)`, the grid
`(H, W)`, and how many leading tokens (class tokens) are not on the grid.
"""

Grid = tuple[int, int]
"""Height and width, in pixels or tokens."""
