"""What the program does, one verb a file, each reading top to bottom."""
