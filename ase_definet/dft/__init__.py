"""Hand-over to DFT codes and what they leave behind."""
