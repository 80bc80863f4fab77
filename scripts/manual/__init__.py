"""The reference pages of the manual, each written from the code that it describes."""
