"""Programs that print the numbers of the README. Not imported by the product."""
