"""What a volunteer can compute, one file a unit kind."""
