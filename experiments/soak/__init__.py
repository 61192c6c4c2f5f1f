"""Kills real runs at random moments, resumes them, and compares every bit with a run that nothing disturbed."""
