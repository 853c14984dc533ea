"""The experiments of the paper, each one call of the command `torchaca run NAME`.

A leaf of the library: nothing outside imports it, and its own dependencies (rich, matplotlib) come with
`pip install "torchaca[lab]"`.
"""
