"""What units a campaign needs, and how their results become cubes."""
