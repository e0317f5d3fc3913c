"""Decisions of human experts: entered, scored on the models' labels, exported with the state of the market."""
