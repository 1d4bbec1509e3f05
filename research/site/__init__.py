"""The site: what it adds to docs/, and the tutorials with their output."""
