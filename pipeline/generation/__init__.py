"""Images of students: generation in batches of different requests, and tables of prompts on Ray Data."""
