"""Who runs the units of a scan."""
