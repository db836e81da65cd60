"""What people look at. Nothing here imports torch."""
