"""Speed and memory of the neural memory, its layer and its models, beside attention, linear attention and other implementations.

`python -m benchmarks.speed`, or `--quick` for a minute's worth of it. Every cell (a subject at one size) runs in a process of its own: one
warm-up, then five timed runs; median, quartiles and range are kept. No form is timed before it agrees with its oracle in float64. What is
not measured is in the results with its reason.

    cells       what is measured and what comes out         plan      which cells there are, and why not
    subjects    our operator, layer and models              parity    the check before any timing
    baselines   attention and linear attention              measure   one cell in its process
    peers       other implementations                       compare   two revisions, alternating
    operations  counted products and the floor              report, plots, profiling
"""
