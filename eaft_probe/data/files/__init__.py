"""Files as people have them: packed, encoded, delimited, nested; one row after the other."""
