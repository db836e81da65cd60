"""Statistics of next-token distributions, the conflict rule, and the files of a scan."""
