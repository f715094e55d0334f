"""Records, or the released table of the paper, as tidy frames, and pure functions on them."""
