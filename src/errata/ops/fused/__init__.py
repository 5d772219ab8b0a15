"""The engine under ``errata.ops.scores``.

``types`` has the public records; ``prepare`` checks one call and gathers its tokens; ``engine`` computes scores and
gradients tile by tile, with one class of ``divergences`` per divergence; ``workspace``, ``sums`` and ``threads`` hold
the memory, the block arithmetic and the CPU threads it uses.
"""
