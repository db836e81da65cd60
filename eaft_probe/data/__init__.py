"""Rows, formats, rendered tokens and batches. Nothing here knows of models beyond a tokenizer."""
