"""The systems that flaxcls is compared with: their environment, and their scripts, which import nothing of flaxcls."""
