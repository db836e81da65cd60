"""`python -m eaft_probe` is `eaft-probe`."""

from eaft_probe.cli import main

main()
