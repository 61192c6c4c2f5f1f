"""The processes of one run on several hosts: they find each other, act together and stop together."""
