"""The stages of `claims.py`: one file for each question, over a bench that all of them share."""
