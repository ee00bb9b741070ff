"""What to run: predicted sizes, and the least harmful steps that fit a budget."""
