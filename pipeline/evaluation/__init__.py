"""Images from a student, and what they are worth."""
