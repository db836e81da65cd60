"""Training objectives: columns → gate, and the loss that the gate weighs. Gates need no torch."""
