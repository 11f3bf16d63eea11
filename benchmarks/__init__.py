"""What serving costs, measured: `python -m benchmarks.run` takes every figure in one run on one machine."""
