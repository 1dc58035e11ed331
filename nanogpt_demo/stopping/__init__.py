"""The stopping benchmark: real learning curves, and what stopping rules would have made of them."""
