"""Write the generated pages and tables of the documentation from the files under research/results."""
