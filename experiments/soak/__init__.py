"""The soak test: it kills real runs at random moments, resumes them, and compares every bit with an undisturbed run."""
